"""llama-index's `DashScope`, over the native protocol, with the first generation of the SDK."""

from __future__ import annotations

import asyncio
import os
from importlib.metadata import version
from typing import Any

import dashscope
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.dashscope import DashScope

INSTRUCT, THINKING = "qwen3-next-80b-a3b-instruct", "qwen3-next-80b-a3b-thinking"
dashscope.base_http_api_url = os.environ["QNEXT_URL"] + "/api/v1"
QUESTION = "What is the capital of France?"


def llm(model: str = INSTRUCT, **more: Any) -> DashScope:
    return DashScope(model_name=model, api_key=os.environ["QNEXT_KEY"], temperature=0, max_tokens=80, **more)


def get_weather(city: str) -> str:
    """Get current weather"""
    return f"sunny in {city}"


def test_the_pinned_sdk() -> None:
    assert version("dashscope") == "1.22.2"


def test_complete_and_stream() -> None:
    whole = llm().complete(QUESTION).text
    assert whole
    pieces = list(llm().stream_complete(QUESTION))
    assert pieces[-1].text == whole and "".join(piece.delta or "" for piece in pieces) == whole


def test_chat_and_stream() -> None:
    turns = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content=QUESTION)]
    whole = llm().chat(turns).message.content
    assert whole
    pieces = list(llm().stream_chat(turns))
    assert pieces[-1].message.content == whole and "".join(piece.delta or "" for piece in pieces) == whole
    assert len(pieces) > 2


def test_async() -> None:
    async def ask() -> tuple[str, str]:
        whole = await llm().acomplete(QUESTION)
        pieces = [piece.text async for piece in await llm().astream_complete(QUESTION)]
        return whole.text, pieces[-1]

    whole, streamed = asyncio.run(ask())
    assert whole and whole == streamed


def test_tools() -> None:
    tool = FunctionTool.from_defaults(fn=get_weather)
    answer = llm().chat_with_tools([tool], user_msg="What's the weather in Beijing?")
    (call,) = llm().get_tool_calls_from_response(answer)
    assert (call.tool_name, call.tool_kwargs) == ("get_weather", {"city": "Beijing"})


def test_thinking() -> None:
    whole = llm(THINKING).complete("What is 2 plus 3?").text
    assert whole and "think>" not in whole
    pieces = list(llm(THINKING).stream_complete("What is 2 plus 3?"))
    assert pieces[-1].text == whole
