"""Structured output and forced calls the whole way: the embedded models' engines, asked by the real SDKs."""

from __future__ import annotations

import json
from typing import Any, Literal

import dashscope
import pytest
from pydantic import BaseModel

from qnext import LLM, EngineConfig, SamplingParams

from .test_end_to_end import BASE, INSTRUCT, THINKING, WEATHER, Real, real

__all__ = ["real"]

ASK: Any = [{"role": "user", "content": "Tell me about a fox, in JSON."}]


class Animal(BaseModel):
    name: str
    legs: int
    home: Literal["wood", "field"]
    friends: list[str]


SCHEMA: Any = {
    "type": "json_schema",
    "json_schema": {"name": "animal", "strict": True, "schema": Animal.model_json_schema()},
}


@pytest.mark.parametrize("model", [INSTRUCT, THINKING])
@pytest.mark.parametrize("max_tokens", [40, 150])
@pytest.mark.parametrize("temperature", [0, 1.9])
def test_a_pydantic_model_is_answered(real: Real, model: str, max_tokens: int, temperature: float) -> None:
    answer = real.openai.chat.completions.parse(
        model=model,
        messages=ASK,
        response_format=Animal,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=3,
        extra_body={"thinking_budget": 30},
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "stop" and isinstance(choice.message.parsed, Animal)


def test_json_streams_through_dashscope(real: Real) -> None:
    frames = dashscope.Generation.call(
        model=INSTRUCT,
        messages=ASK,
        api_key=real.key,
        stream=True,
        incremental_output=True,
        result_format="message",
        response_format=SCHEMA,
        max_tokens=100,
        seed=1,
    )
    Animal.model_validate_json("".join(frame.output.choices[0].message.content for frame in frames))


def test_any_json_from_several_choices(real: Real) -> None:
    answer = real.openai.chat.completions.create(
        model=INSTRUCT, messages=ASK, response_format={"type": "json_object"}, n=4, max_tokens=50, seed=1
    )
    for choice in answer.choices:
        assert isinstance(json.loads(choice.message.content or ""), dict)


@pytest.mark.parametrize("model", [INSTRUCT, THINKING])
def test_a_forced_call(real: Real, model: str) -> None:
    answer = real.openai.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Hello!"}],
        tools=[WEATHER],
        tool_choice={"type": "function", "function": {"name": "get_weather"}},
        max_tokens=60,
        extra_body={"thinking_budget": 30},
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls" and choice.message.tool_calls
    (call,) = choice.message.tool_calls
    assert call.function.name == "get_weather" and isinstance(json.loads(call.function.arguments), dict)


def test_a_base_model_chooses(real: Real) -> None:
    answer = real.openai.completions.create(
        model=BASE,
        prompt="The fox is",
        max_tokens=20,
        extra_body={"structured_outputs": {"choice": [" red", " blue"]}},
    )
    assert answer.choices[0].text in (" red", " blue")


def test_without_a_server() -> None:
    sampling = SamplingParams(temperature=1.0, seed=2, max_tokens=60)
    with LLM("tiny-instruct", engine=EngineConfig(max_sequences=4, max_length=512)) as llm:
        answer = llm.chat(ASK, sampling, response_format=SCHEMA)
        Animal.model_validate_json(answer.text)
        called = llm.chat(ASK, sampling, tools=[WEATHER], tool_choice="required")
        assert called.finish_reason == "tool_calls" and called.tool_calls[0].name == "get_weather"
        assert list(llm.stream(ASK, sampling, response_format=SCHEMA))
        (chosen,) = llm.generate(["So"], sampling, structured_outputs={"regex": " [a-c]{4}"})
        assert len(chosen.text) == 5 and set(chosen.text[1:]) <= set("abc")
        with pytest.raises(ValueError, match="not supported: not"):
            llm.chat(ASK, response_format={"type": "json_schema", "json_schema": {"schema": {"not": {}}}})
