"""agentscope's `DashScopeChatModel`, over the compatible protocol."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import openai
import pytest
from agentscope.credential import DashScopeCredential
from agentscope.message import TextBlock, UserMsg
from agentscope.model import DashScopeChatModel
from agentscope.tool import ToolChoice

INSTRUCT, THINKING = "qwen3-next-80b-a3b-instruct", "qwen3-next-80b-a3b-thinking"
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get current weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]


def ask(text: str, model: str = INSTRUCT, *, stream: bool, key: str | None = None, **more: Any) -> list[Any]:
    """All responses, the last of which is whole."""
    thinking = model == THINKING
    chat = DashScopeChatModel(
        DashScopeCredential(
            api_key=key or os.environ["QNEXT_KEY"], base_url=os.environ["QNEXT_URL"] + "/compatible-mode/v1"
        ),
        model,
        DashScopeChatModel.Parameters(temperature=0, max_tokens=80, thinking_enable=thinking),
        stream=stream,
        max_retries=0,
    )

    async def work() -> list[Any]:
        found = await chat([UserMsg("user", [TextBlock(text=text)])], **more)
        return [each async for each in found] if stream else [found]

    return asyncio.run(work())


def blocks(response: Any) -> list[tuple[str, str]]:
    told = []
    for block in response.content:
        text = (
            getattr(block, "text", None) or getattr(block, "thinking", None) or getattr(block, "input", None)
        )
        told.append((block.type, str(text)))
    return told


def test_plain_and_stream() -> None:
    (whole,) = ask("What is the capital of France?", stream=False)
    ((kind, text),) = blocks(whole)
    assert kind == "text" and text
    frames = ask("What is the capital of France?", stream=True)
    assert len(frames) > 2 and frames[-1].is_last and blocks(frames[-1]) == [(kind, text)]
    assert whole.usage.output_tokens > 0


def test_thinking() -> None:
    (whole,) = ask("What is 2 plus 3?", THINKING, stream=False)
    told = blocks(whole)
    assert [kind for kind, _ in told] == ["thinking", "text"] and all(text for _, text in told)
    assert blocks(ask("What is 2 plus 3?", THINKING, stream=True)[-1]) == told


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("mode", ["auto", "required", "get_weather"])
def test_tools(stream: bool, mode: str) -> None:
    found = ask(
        "What's the weather in Beijing?", stream=stream, tools=TOOLS, tool_choice=ToolChoice(mode=mode)
    )
    calls = [block for block in found[-1].content if block.type == "tool_call"]
    assert [call.name for call in calls] == ["get_weather"] and "city" in str(calls[0].input)


def test_refusals() -> None:
    with pytest.raises(openai.AuthenticationError):
        ask("Hello!", stream=False, key="sk-bad")
