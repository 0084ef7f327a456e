"""langchain-community's `Tongyi` and `ChatTongyi`, over the native protocol."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import dashscope
import pytest
from langchain_community.chat_models.tongyi import ChatTongyi
from langchain_community.llms.tongyi import Tongyi
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool

INSTRUCT, THINKING = "qwen3-next-80b-a3b-instruct", "qwen3-next-80b-a3b-thinking"
dashscope.base_http_api_url = os.environ["QNEXT_URL"] + "/api/v1"
QUESTION = "What is the capital of France?"


@tool
def get_weather(city: str) -> str:
    """Get current weather"""
    return f"sunny in {city}"


def chat(model: str = INSTRUCT, **more: Any) -> ChatTongyi:
    settings = {"temperature": 0, "max_tokens": 80, "seed": 1}
    return ChatTongyi(
        model=model, max_retries=1, model_kwargs=settings | more.pop("model_kwargs", {}), **more
    )


def test_llm_plain_and_stream() -> None:
    llm = Tongyi(model=INSTRUCT, max_retries=1, model_kwargs={"temperature": 0, "max_tokens": 30})
    whole = llm.invoke(QUESTION)
    pieces = list(llm.stream(QUESTION))
    assert whole and "".join(pieces) == whole and len(pieces) > 1
    assert llm.batch([QUESTION, QUESTION]) == [whole, whole]


def test_chat_plain_and_stream() -> None:
    answer = chat().invoke([SystemMessage("Be brief."), HumanMessage(QUESTION)])
    assert answer.content and answer.response_metadata["finish_reason"] == "stop"
    assert answer.response_metadata["token_usage"]["input_tokens"] > 0
    chunks = list(chat(streaming=True).stream([SystemMessage("Be brief."), HumanMessage(QUESTION)]))
    assert "".join(str(chunk.content) for chunk in chunks) == answer.content and len(chunks) > 2
    reasons = [chunk.response_metadata.get("finish_reason") for chunk in chunks]
    assert [reason for reason in reasons if reason not in (None, "null")] == ["stop"]


def test_chat_async() -> None:
    async def ask() -> tuple[Any, list[Any]]:
        whole = await chat().ainvoke(QUESTION)
        return whole, [chunk async for chunk in chat(streaming=True).astream(QUESTION)]

    whole, chunks = asyncio.run(ask())
    assert whole.content and "".join(str(chunk.content) for chunk in chunks) == whole.content
    assert len(chunks) > 2


def test_tools_called_and_answered() -> None:
    """With tools bound it asks for snapshots and takes the difference of each two."""
    asked = HumanMessage("What's the weather in Beijing?")
    bound = chat().bind_tools([get_weather])
    answer = bound.invoke([asked])
    assert isinstance(answer, AIMessage)
    (call,) = answer.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Beijing"})
    merged: Any = None
    for chunk in chat(streaming=True).bind_tools([get_weather]).stream([asked]):
        merged = chunk if merged is None else merged + chunk
    (streamed,) = merged.tool_calls
    assert (streamed["name"], streamed["args"]) == (call["name"], call["args"])
    result = ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])
    assert bound.invoke([asked, answer, result]).content


def test_thinking() -> None:
    answer = chat(THINKING).invoke("What is 2 plus 3?")
    assert answer.content and answer.additional_kwargs["reasoning_content"]
    chunks = list(chat(THINKING, streaming=True).stream("What is 2 plus 3?"))
    reasoning = "".join(chunk.additional_kwargs.get("reasoning_content", "") for chunk in chunks)
    assert reasoning == answer.additional_kwargs["reasoning_content"]
    assert "".join(str(chunk.content) for chunk in chunks) == answer.content


def test_refusals_are_raised_at_once() -> None:
    with pytest.raises(ValueError, match="Temperature should be in"):
        chat(model_kwargs={"temperature": 5}).invoke(QUESTION)
    with pytest.raises(Exception, match="InvalidApiKey"):
        chat(api_key="sk-bad").invoke(QUESTION)
