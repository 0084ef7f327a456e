"""Tool calls and tool conversations through the real `openai` SDK."""

from __future__ import annotations

import re
from typing import Any

import pytest
from openai import OpenAI

from .conftest import Live
from .test_sdk_openai import CALL, HI, WEATHER, client

__all__ = ["client"]


@pytest.mark.parametrize("parallel", [None, True])
def test_tool_calls(client: OpenAI, live: Live, parallel: bool | None) -> None:
    live.instruct.say(f"Let me look.\n{CALL}\n{CALL}", pieces=4)
    asked: Any = {"model": "tiny-instruct", "messages": HI, "tools": WEATHER}
    if parallel is not None:
        asked["parallel_tool_calls"] = parallel
    answer = client.chat.completions.create(**asked)
    calls = answer.choices[0].message.tool_calls or []
    assert len(calls) == (2 if parallel else 1) and answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.content == "Let me look."
    assert calls[0].function.name == "get_weather" and calls[0].function.arguments == '{"city": "Köln"}'
    assert re.fullmatch("call_[0-9a-f]{22}", calls[0].id)
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    content, last = "", None
    for chunk in client.chat.completions.create(**asked, stream=True):
        delta, last = chunk.choices[0].delta, chunk.choices[0].finish_reason
        content += delta.content or ""
        for call in delta.tool_calls or []:
            names[call.index] = names.get(call.index, "") + (call.function.name or "")
            arguments[call.index] = arguments.get(call.index, "") + (call.function.arguments or "")
    assert list(names.values()) == ["get_weather"] * len(calls) and last == "tool_calls"
    assert list(arguments.values()) == ['{"city": "Köln"}'] * len(calls) and content == "Let me look."


def test_tool_conversation_and_choice_none(client: OpenAI, live: Live) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "not json"}}
    turns: Any = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "sunny"}]},
    ]
    client.chat.completions.create(model="tiny-instruct", messages=turns, tools=WEATHER)
    prompt = live.instruct.tokenizer.decode(live.instruct.requests[0].prompt, skip_control=False)
    assert "sunny" in prompt and "not json" in prompt and "# Tools" in prompt
    live.instruct.say(CALL)
    answer = client.chat.completions.create(
        model="tiny-instruct", messages=HI, tools=WEATHER, tool_choice="none"
    )
    prompt = live.instruct.tokenizer.decode(live.instruct.requests[1].prompt, skip_control=False)
    assert "# Tools" not in prompt and not answer.choices[0].message.tool_calls
