"""The younger dialects the whole way: real engines, the real SDKs, one text for one seed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import pytest
from openai import OpenAI
from pydantic import BaseModel

from .test_end_to_end import INSTRUCT, THINKING, WEATHER, Real, real

__all__ = ["real"]

HELLO: Any = [{"role": "user", "content": "Hello! Who are you?"}]
WISH = {"seed": 7, "temperature": 0.9, "top_p": 0.9}
TOOL: Any = {"name": "get_weather", "input_schema": WEATHER["function"]["parameters"]}  # type: ignore[index]
FLAT: Any = {"type": "function", **WEATHER["function"]}  # type: ignore[dict-item]


class Weather(BaseModel):
    city: Literal["Paris", "Rome"]
    rains: bool


@pytest.fixture
def client(real: Real) -> Iterator[OpenAI]:
    with real.openai as client:
        yield client


def claude(real: Real) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=real.url, api_key=real.key, max_retries=0)


def test_a_seed_gives_one_text_in_every_dialect(real: Real, client: OpenAI) -> None:
    chat = client.chat.completions.create(model=INSTRUCT, messages=HELLO, max_completion_tokens=200, **WISH)
    text = chat.choices[0].message.content
    asked: Any = {"model": INSTRUCT, "input": HELLO, "max_output_tokens": 200, "extra_body": WISH}
    assert client.responses.create(**asked).output_text == text
    with client.responses.stream(**asked) as stream:
        assert stream.get_final_response().output_text == text
    with claude(real) as other:
        told: Any = {"model": INSTRUCT, "messages": HELLO, "max_tokens": 200, "extra_body": WISH}
        assert other.messages.create(**told).content[0].text == text
        with other.messages.stream(**told) as streamed:
            assert streamed.get_final_text() == text
    assert text and real.all_free()


@pytest.mark.parametrize("model", [INSTRUCT, THINKING])
def test_schemas_and_forced_calls(real: Real, client: OpenAI, model: str) -> None:
    parsed = client.responses.parse(
        model=model, input="Weather?", text_format=Weather, extra_body={"thinking_budget": 20}
    )
    assert isinstance(parsed.output_parsed, Weather)
    called: Any = client.responses.create(
        model=model,
        input="Weather?",
        tools=[FLAT],
        tool_choice="required",
        extra_body={"thinking_budget": 20},
    ).output[-1]
    assert called.type == "function_call" and isinstance(json.loads(called.arguments), dict)
    with claude(real) as other:
        asked: Any = {
            "model": model,
            "messages": [{"role": "user", "content": "Weather?"}],
            "max_tokens": 200,
        }
        if model == THINKING:
            asked["thinking"] = {"type": "enabled", "budget_tokens": 20}
        answer = other.messages.parse(**asked, output_format=Weather)
        assert isinstance(answer.parsed_output, Weather)
        forced = other.messages.create(
            **asked, tools=[TOOL], tool_choice={"type": "tool", "name": "get_weather"}
        )
        assert forced.stop_reason == "tool_use"
        kinds = [block.type for block in forced.content]
        assert kinds[-1] == "tool_use" and (kinds[0] == "thinking") == (model == THINKING)
    assert real.all_free()


def test_a_stored_conversation_is_remembered(real: Real, client: OpenAI) -> None:
    first = client.responses.create(model=INSTRUCT, input="My name is Ana.", temperature=0)
    asked: Any = {"model": INSTRUCT, "input": "What is my name?", "temperature": 0}
    second = client.responses.create(**asked, previous_response_id=first.id)
    assert second.usage is not None and first.usage is not None
    assert second.usage.input_tokens > first.usage.total_tokens
    assert second.usage.input_tokens_details.cached_tokens > 0  # what came before is not computed again
    assert "Ana" in second.output_text
    assert "Ana" not in client.responses.create(**asked).output_text
