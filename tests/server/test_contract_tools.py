"""The contract's rules of tools, by every way of the SDKs."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from .conftest import Live
from .ways import HI, WAYS, ask

pytestmark = pytest.mark.parametrize("running", ["httptools"], indirect=True)
INSTRUCT, THINKING = "qwen3-next-80b-a3b-instruct", "qwen3-next-80b-a3b-thinking"
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "x", "parameters": CITY}}
TIME = {"type": "function", "function": {"name": "get_time"}}


def call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


KÖLN, PARIS = call("get_weather", '{"city": "Köln"}'), call("get_weather", '{"city": "Paris"}')
NOW = call("get_time", "{}")


@dataclass(frozen=True)
class Case:
    """What the model says, and the text and calls that its user reads."""

    says: str
    text: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    finish: str = "tool_calls"
    params: dict[str, Any] = field(default_factory=dict)


WANTED = ("get_weather", '{"city": "Köln"}')
CASES = {
    "one": Case(KÖLN, calls=[WANTED]),
    "after text": Case(f"Let me look.\n{KÖLN}", "Let me look.", [WANTED]),
    "no arguments": Case(NOW, calls=[("get_time", "{}")]),
    "none given": Case('<tool_call>\n{"name": "get_time"}\n</tool_call>', calls=[("get_time", "{}")]),
    "arguments as text": Case(call("get_weather", r'"{\"city\": \"Köln\"}"'), calls=[WANTED]),
    "only the first": Case(f"{KÖLN}\n{PARIS}", calls=[WANTED]),
    "several": Case(
        f"{KÖLN}\n{NOW}\n{PARIS}",
        calls=[WANTED, ("get_time", "{}"), ("get_weather", '{"city": "Paris"}')],
        params={"parallel_tool_calls": True},
    ),
    "broken": Case(
        "<tool_call>\nget_weather(Köln)\n</tool_call>",
        "<tool_call>\nget_weather(Köln)\n</tool_call>",
        finish="stop",
    ),
    "no call": Case("It is sunny.", "It is sunny.", finish="stop"),
    "not asked for": Case(KÖLN, KÖLN, finish="stop", params={"tool_choice": "none"}),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_its_user_reads(way: str, live: Live) -> None:
    for name, case in CASES.items():
        live.instruct.say(case.says, pieces=3)
        told = ask(way, live, INSTRUCT, tools=[WEATHER, TIME], **case.params)
        assert (told.text, told.finish) == (case.text, case.finish), (name, told)
        assert sorted(told.calls) == list(range(len(case.calls))), name
        made = [(each.name, each.arguments) for _, each in sorted(told.calls.items())]
        assert made == case.calls, name
        assert all(re.fullmatch("call_[0-9a-f]{22}", each.id) for each in told.calls.values())
        assert len({each.id for each in told.calls.values()}) == len(case.calls)


@pytest.mark.parametrize("way", WAYS)
def test_a_thinking_model_calls_after_its_thought(way: str, live: Live) -> None:
    live.thinking.say(f"I need the weather. <tool_call> is how.\n</think>\n\n{KÖLN}")
    told = ask(way, live, THINKING, tools=[WEATHER])
    assert told.reasoning == "I need the weather. <tool_call> is how."
    assert [(each.name, each.arguments) for each in told.calls.values()] == [WANTED]
    assert (told.text, told.finish) == ("", "tool_calls")


@pytest.mark.parametrize("way", WAYS)
def test_choices(way: str, live: Live) -> None:
    named = {"type": "function", "function": {"name": "get_weather"}}
    for choice, constrained, offered in [
        ("auto", False, True),
        ("none", False, False),
        ("required", True, True),
        (named, True, True),
    ]:
        assert ask(way, live, INSTRUCT, tools=[WEATHER], tool_choice=choice).status == 200
        request = live.instruct.requests[-1]
        assert (request.grammar is not None) == constrained
        assert ("# Tools" in live.instruct.tokenizer.decode(request.prompt)) == offered
        assert request.sampling.n == 1


@pytest.mark.parametrize("way", WAYS)
def test_a_conversation_with_tools(way: str, live: Live) -> None:
    """Arguments that are no JSON, a silent assistant, results as text and as parts: all are rendered."""
    turns = [
        *HI,
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": "not json"}},
                {"id": "b", "type": "function", "function": {"name": "get_time", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "a", "content": "sunny"},
        {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "noon"}]},
    ]
    told = ask(way, live, INSTRUCT, turns, tools=[WEATHER, TIME])
    assert (told.status, told.text) == (200, "Hello there, friend."), told
    prompt = live.instruct.tokenizer.decode(live.instruct.requests[0].prompt, skip_control=False)
    results = "<tool_response>\nsunny\n</tool_response>\n<tool_response>\nnoon\n</tool_response>"
    assert results in prompt and "not json" in prompt


def test_a_silent_assistant_without_content(live: Live) -> None:
    made = {"id": "a", "type": "function", "function": {"name": "get_time", "arguments": ""}}
    for silent in ({}, {"content": None}):
        turns = [
            *HI,
            {"role": "assistant", "tool_calls": [made], **silent},
            {"role": "tool", "tool_call_id": "a", "content": "noon"},
        ]
        body = {"model": INSTRUCT, "messages": turns, "input": {"messages": turns}}
        for path in ("/v1/chat/completions", "/api/v1/services/aigc/text-generation/generation"):
            assert httpx.post(live.url + path, json=body, headers=live.auth).status_code == 200


def fragments(live: Live, native: bool, **params: Any) -> list[Any]:
    """The fragments of calls in a stream, as they are on the wire."""
    body: dict[str, Any] = {
        "model": INSTRUCT,
        "messages": HI,
        "stream": True,
        "tools": [WEATHER, TIME],
        **params,
    }
    path, headers = "/v1/chat/completions", live.auth
    if native:
        body = {
            "model": INSTRUCT,
            "input": {"messages": HI},
            "parameters": {"tools": [WEATHER, TIME], **params},
        }
        path = "/api/v1/services/aigc/text-generation/generation"
        headers = headers | {"X-DashScope-SSE": "enable"}
    lines = httpx.post(live.url + path, json=body, headers=headers).text.split("\n")
    data = [json.loads(line[5:]) for line in lines if line.startswith("data:") and "[DONE]" not in line]
    if native:
        messages = [payload["output"]["choices"][0]["message"] for payload in data]
        assert all(isinstance(message["content"], str) for message in messages)
    else:
        messages = [payload["choices"][0]["delta"] for payload in data]
    return [call for message in messages for call in message.get("tool_calls", [])]


@pytest.mark.parametrize("native", [True, False])
def test_fragments_name_a_call_once(live: Live, native: bool) -> None:
    live.instruct.say(f"{KÖLN}\n{NOW}")
    params: dict[str, Any] = {"parallel_tool_calls": True} | ({"incremental_output": True} if native else {})
    told = fragments(live, native, **params)
    for index, name in enumerate(("get_weather", "get_time")):
        mine = [each for each in told if each["index"] == index]
        assert [each["function"].get("name") for each in mine if each["function"].get("name")] == [name]
        assert mine[0]["id"].startswith("call_") and mine[0]["type"] == "function"
        for later in mine[1:]:
            assert later.get("id", "") == "" and "name" not in later["function"]
            assert ("id" in later) == native
        assert json.loads("".join(each["function"]["arguments"] for each in mine)) is not None
    assert all("null" not in (each.get("id"), each["function"].get("name")) for each in told)


def test_cumulative_frames_repeat_the_calls_so_far(live: Live) -> None:
    """Left out, `incremental_output` means snapshots: there are clients that subtract one from the next."""
    live.instruct.say(f"{KÖLN}\n{NOW}")
    told = fragments(live, True, parallel_tool_calls=True)
    assert [each["function"]["name"] for each in told][-2:] == ["get_weather", "get_time"]
    assert len({each["id"] for each in told}) == 2 and len(told) > 2
    assert all(json.loads(each["function"]["arguments"]) is not None for each in told)
