"""langchain-openai's `ChatOpenAI`, over the compatible protocol."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import openai
import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

INSTRUCT, THINKING, BASE = (f"qwen3-next-80b-a3b-{kind}" for kind in ("instruct", "thinking", "base"))
QUESTION = "What is the capital of France?"


@tool
def get_weather(city: str) -> str:
    """Get current weather"""
    return f"sunny in {city}"


class Person(BaseModel):
    name: str
    age: int


def settings(model: str) -> dict[str, Any]:
    return {
        "model": model,
        "base_url": os.environ["QNEXT_URL"] + "/compatible-mode/v1",
        "api_key": os.environ["QNEXT_KEY"],
        "temperature": 0,
        "max_tokens": 80,
        "max_retries": 0,
    }


def chat(model: str = INSTRUCT, **more: Any) -> ChatOpenAI:
    return ChatOpenAI(**settings(model) | more)


def test_plain_stream_and_usage() -> None:
    answer = chat().invoke(QUESTION)
    assert answer.content and answer.usage_metadata is not None
    chunks = list(chat(stream_usage=True).stream(QUESTION))
    assert "".join(str(chunk.content) for chunk in chunks) == answer.content and len(chunks) > 2
    usage = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
    assert len(usage) == 1 and usage[0]["output_tokens"] == answer.usage_metadata["output_tokens"]


def test_async_stream() -> None:
    async def ask() -> str:
        return "".join([str(chunk.content) async for chunk in chat().astream(QUESTION)])

    assert asyncio.run(ask())


@pytest.mark.parametrize("choice", ["auto", "get_weather", "any"])
def test_tools(choice: str) -> None:
    asked = HumanMessage("What's the weather in Beijing?")
    bound = chat().bind_tools([get_weather], tool_choice=choice)
    answer = bound.invoke([asked])
    (call,) = answer.tool_calls
    assert call["name"] == "get_weather" and set(call["args"]) <= {"city"}
    merged: Any = None
    for chunk in bound.stream([asked]):
        merged = chunk if merged is None else merged + chunk
    assert [(each["name"], each["args"]) for each in merged.tool_calls] == [("get_weather", call["args"])]
    result = ToolMessage("sunny", tool_call_id=call["id"])
    assert chat().bind_tools([get_weather]).invoke([asked, answer, result])


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(method: Any) -> None:
    found = chat().with_structured_output(Person, method=method).invoke("Make up a person, as JSON.")
    assert isinstance(found, Person)


def test_thinking() -> None:
    answer = chat(THINKING).invoke("What is 2 plus 3?")
    assert answer.content and "think>" not in str(answer.content)
    assert answer.response_metadata["token_usage"]["completion_tokens_details"]["reasoning_tokens"] > 0


def test_completions() -> None:
    assert OpenAI(**settings(BASE) | {"max_tokens": 10}).invoke("Once upon a time")


def test_refusals() -> None:
    with pytest.raises(openai.BadRequestError, match="Temperature should be in"):
        chat(temperature=5).invoke(QUESTION)
    with pytest.raises(openai.AuthenticationError):
        chat(api_key="sk-bad").invoke(QUESTION)
