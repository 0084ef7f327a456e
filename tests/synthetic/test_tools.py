"""Tools: schemas are valid, arguments are copied from the user, and calls are made only where one fits."""

from __future__ import annotations

import json
import re
from random import Random

import pytest

from qnext.synthetic import tools
from qnext.synthetic.dialogue import Setting, ask
from qnext.synthetic.slots import table
from qnext.text.messages import Message

SCHEMAS = {tool["name"]: tool for tool in table("tools")["tool"]}
ARTICLE = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get current weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_is_complete(name: str) -> None:
    schema = SCHEMAS[name]
    assert len(schema["do"]) >= 2 and len(schema["ask"]) >= 2 and schema["missing"].endswith("?")
    required = [n for n, kind in schema["parameters"].items() if "?" not in kind]
    for template in schema["do"] + schema["ask"] + schema.get("told", []):
        assert set(re.findall(r"\{(\w+)\}", template)) == set(required), template
    for number in range(5):
        arguments = {n: "1 + 1" if n == "expression" else "7" for n in schema["parameters"]}
        result, sentence = tools._result(Random(number), schema, arguments)
        assert isinstance(json.loads(result.content), dict)
        assert "{" not in sentence.content


def test_there_are_forty_tools_and_more() -> None:
    assert len(SCHEMAS) >= 40


def test_the_plain_weather_schema_is_taught_most() -> None:
    shown = [tool for seed in range(500) for tool in tools.make(Random(seed), Setting()).tools]
    assert sum(tool == ARTICLE for tool in shown) > 60


def test_arguments_stand_in_what_the_user_said() -> None:
    for seed in range(600):
        dialogue = tools.make(Random(seed), Setting(heldout=seed % 2 == 0))
        said = " ".join(m.content for m in dialogue.messages if m.role == "user").lower()
        for message in dialogue.messages:
            for call in message.tool_calls:
                assert call.name in [tool["function"]["name"] for tool in dialogue.tools]
                for value in json.loads(call.arguments).values():
                    assert str(value).lower() in said


def test_numbers_are_numbers_and_names_have_capitals() -> None:
    schema = {
        "parameters": {
            "n": "integer few",
            "x": "number amount",
            "city": "string city",
            "text": "string message",
        }
    }
    given = {"n": "3", "x": "20", "city": "new york", "text": "hi"}
    assert tools.typed(schema, given) == {"n": 3, "x": 20, "city": "New York", "text": "hi"}


def test_every_kind_of_tool_talk_occurs() -> None:
    kinds = set()
    for seed in range(800):
        dialogue = tools.make(Random(seed), Setting())
        roles = "".join(message.role[0] for message in dialogue.messages)
        calls = [len(m.tool_calls) for m in dialogue.messages if m.role == "assistant"]
        kinds.add((roles, tuple(calls)))
    for kind in [
        ("ua", (1,)),
        ("ua", (2,)),
        ("ua", (0,)),
        ("uata", (1, 0)),
        ("uaua", (0, 1)),
        ("uataua", (1, 0, 1)),
    ]:
        assert kind in kinds


def test_optional_arguments_are_given_only_when_said() -> None:
    schema = SCHEMAS["create_event"]
    seen = set()
    for seed in range(60):
        text, arguments = tools.utterance(Random(seed), schema, Setting())
        seen.add("time" in arguments)
        assert all(value.lower() in text.lower() for value in arguments.values())
    assert seen == {True, False}


def test_without_a_fitting_tool_there_is_no_call() -> None:
    for seed in range(200):
        dialogue = tools.without_fit(Random(seed), Setting())
        assert dialogue.tools and not dialogue.messages[-1].tool_calls
        assert re.search(r"no tool|not have a tool|none of my tools", dialogue.messages[-1].content)


def test_attached_tools_are_not_called_and_could_not_help() -> None:
    for seed in range(200):
        dialogue = tools.attach(Random(seed), ask("What is a cat?", "An animal.", "I know this.", ["animal"]))
        names = {tool["function"]["name"] for tool in dialogue.tools}
        assert names and not names & tools._HANDY and dialogue.must == ("animal",)
        assert dialogue.messages[0] == Message("user", "What is a cat?")
        assert dialogue.messages[-1].reasoning.endswith("I know this.")


def test_the_calculator_is_right() -> None:
    for expression, value in (("12 + 30", 42), ("7 * 6", 42), ("50 - 8", 42), ("7 / 2", 3.5)):
        result, _ = tools._result(Random(0), SCHEMAS["calculator"], {"expression": expression})
        assert json.loads(result.content) == {"result": value}


def test_invented_tools_differ() -> None:
    names = {tools.invented(Random(seed))["name"] for seed in range(300)}
    assert len(names) > 250 and all(re.fullmatch(r"[a-z_]{1,64}", name) for name in names)


def test_two_codes_typed_in_lower_case_are_called_as_typed() -> None:
    """Only names get their capitals back."""
    found = []
    for seed in range(6000):
        dialogue = tools.make(Random(seed), Setting(heldout=False, thinking=False))
        calls = dialogue.messages[-1].tool_calls
        codes = re.findall(r"\b[A-Za-z]{2}\d{3,}\b", dialogue.messages[-2].content)
        if len(calls) == len(codes) == 2:
            assert codes == [value for call in calls for value in json.loads(call.arguments).values()]
            found += codes
    assert any(code.islower() for code in found) and any(code.isupper() for code in found)
