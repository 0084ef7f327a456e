"""What a request asks of an answer, and what is wrong with it, in words that name the parameter."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qnext.text.grammar import ANY_OBJECT, CallForm, GrammarError, GrammarSpec, TextForm, answer_spec

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
WRAPPED = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": SCHEMA}}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "f", "parameters": {"properties": {"é": {}}}}},
    {"type": "function", "function": {"name": "g"}},
]
F = CallForm(
    "f",
    '{"type": "object", "additionalProperties": false, "properties": {"é": {}}}',
    "tools[0].function.parameters",
)
G = CallForm("g", ANY_OBJECT, "tools[1].function.parameters")
JSON = TextForm("schema", ANY_OBJECT, "response_format")


@pytest.mark.parametrize(
    ("wish", "spec"),
    [
        ({}, None),
        ({"tools": TOOLS, "tool_choice": "auto", "response_format": {"type": "text"}}, None),
        ({"tools": TOOLS, "tool_choice": "none"}, None),
        ({"response_format": {"type": "json_object"}}, GrammarSpec(JSON)),
        (
            {"response_format": WRAPPED},
            GrammarSpec(TextForm("schema", json.dumps(SCHEMA), "response_format")),
        ),
        (
            {"structured_outputs": {"json": SCHEMA, "regex": None}},
            GrammarSpec(TextForm("schema", json.dumps(SCHEMA), "structured_outputs")),
        ),
        (
            {"structured_outputs": {"json": json.dumps(SCHEMA)}},
            GrammarSpec(TextForm("schema", json.dumps(SCHEMA), "structured_outputs")),
        ),
        (
            {"structured_outputs": {"json_object": True}},
            GrammarSpec(TextForm("schema", ANY_OBJECT, "structured_outputs")),
        ),
        (
            {"structured_outputs": {"regex": "a+"}},
            GrammarSpec(TextForm("regex", "a+", "structured_outputs")),
        ),
        (
            {"structured_outputs": {"choice": ["a", "é"]}},
            GrammarSpec(TextForm("choice", '["a", "é"]', "structured_outputs")),
        ),
        ({"tools": TOOLS, "tool_choice": "required"}, GrammarSpec(calls=(F, G))),
        ({"tools": TOOLS, "tool_choice": "required", "parallel": True}, GrammarSpec(calls=(F, G), many=True)),
        (
            {
                "tools": TOOLS,
                "tool_choice": {"type": "function", "function": {"name": "g"}},
                "parallel": True,
            },
            GrammarSpec(calls=(G,)),
        ),
        ({"tools": TOOLS, "response_format": {"type": "json_object"}}, GrammarSpec(JSON, (F, G))),
        (
            {"tools": TOOLS, "tool_choice": "none", "response_format": {"type": "json_object"}},
            GrammarSpec(JSON),
        ),
    ],
)
def test_wishes(wish: dict[str, Any], spec: GrammarSpec | None) -> None:
    assert answer_spec(**wish) == spec
    assert hash(answer_spec(**wish)) == hash(spec)


UNKNOWN = "Unknown format of response_format"
ODD = [{"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}]


@pytest.mark.parametrize(
    ("wish", "where", "words"),
    [
        ({"response_format": "json"}, "response_format", UNKNOWN),
        ({"response_format": {"type": "xml"}}, "response_format", UNKNOWN),
        ({"response_format": {"type": "json_schema"}}, "response_format", "json_schema must be"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": True}}},
            "response_format",
            "the schema an object",
        ),
        (
            {"response_format": {**WRAPPED, "json_schema": {"schema": {}, "name": 0}}},
            "response_format",
            "a text",
        ),
        (
            {"response_format": {**WRAPPED, "json_schema": {"schema": {}, "strict": "yes"}}},
            "response_format",
            "strict must be true or false",
        ),
        ({"structured_outputs": []}, "structured_outputs", "one of json, json_object, regex, choice"),
        ({"structured_outputs": {"grammar": "x"}}, "structured_outputs", "one of json"),
        ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs", "one of json"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs", "structured_outputs.json must be"),
        ({"structured_outputs": {"regex": 3}}, "structured_outputs", "must be a regular expression"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs", "must be a list of texts"),
        ({"structured_outputs": {"choice": ["a", 1]}}, "structured_outputs", "must be a list of texts"),
        ({"structured_outputs": {"json_object": 1}}, "structured_outputs", "must be true"),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "structured_outputs",
            "give one",
        ),
        ({"tool_choice": "required"}, "tool_choice", "no tools are given"),
        ({"tools": TOOLS, "tool_choice": "always"}, "tool_choice", "tool_choice is one of the strings"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice", "tool_choice is one of"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "h"}}},
            "tool_choice",
            "names 'h', but no tool",
        ),
        ({"tools": ODD, "tool_choice": "required"}, "tools[0].function.parameters", "of type object"),
    ],
)
def test_what_is_wrong_is_named(wish: dict[str, Any], where: str, words: str) -> None:
    with pytest.raises(GrammarError) as caught:
        answer_spec(**wish)
    assert caught.value.where == where and words in str(caught.value)


@pytest.mark.parametrize("more", ["additionalProperties", "allOf", "patternProperties"])
def test_tools_that_say_what_else_may_be_given_stay_open(more: str) -> None:
    parameters = {"properties": {"é": {}}, more: {}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    spec = answer_spec(tools=[tool], tool_choice="required")
    assert spec is not None and json.loads(spec.calls[0].parameters) == {"type": "object", **parameters}


def test_tools_that_nobody_forces_may_be_odd() -> None:
    assert answer_spec(tools=ODD) is None
    choice = {"type": "function", "function": {"name": "g"}}
    assert answer_spec(tools=[*ODD, TOOLS[1]], tool_choice=choice) == GrammarSpec(calls=(G,))
