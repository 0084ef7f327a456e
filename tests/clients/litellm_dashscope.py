"""litellm's `dashscope/…` models, over the compatible protocol, and how it maps errors."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import litellm
import pytest

INSTRUCT, THINKING = "dashscope/qwen3-next-80b-a3b-instruct", "dashscope/qwen3-next-80b-a3b-thinking"
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


def ask(model: str = INSTRUCT, content: Any = "What is the capital of France?", **more: Any) -> Any:
    messages = [{"role": "user", "content": content}]
    where = {"api_base": os.environ["QNEXT_URL"] + "/compatible-mode/v1", "api_key": os.environ["QNEXT_KEY"]}
    return litellm.completion(
        model, messages, **{"temperature": 0, "max_tokens": 80, "num_retries": 0, **where, **more}
    )


def test_plain_and_stream() -> None:
    whole = ask()
    text = whole.choices[0].message.content
    assert text and whole.usage.prompt_tokens > 0 and whole.choices[0].finish_reason == "stop"
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    usage = [chunk.usage for chunk in chunks if getattr(chunk, "usage", None)]
    assert usage and usage[-1].completion_tokens == whole.usage.completion_tokens


def test_async() -> None:
    async def work() -> str:
        answer = await litellm.acompletion(
            INSTRUCT,
            [{"role": "user", "content": "Hello!"}],
            api_base=os.environ["QNEXT_URL"] + "/compatible-mode/v1",
            api_key=os.environ["QNEXT_KEY"],
            max_tokens=20,
        )
        return str(answer.choices[0].message.content)

    assert asyncio.run(work())


def test_marks_for_the_cache_are_kept() -> None:
    parts = [{"type": "text", "text": "Hello!", "cache_control": {"type": "ephemeral"}}]
    assert ask(content=parts).choices[0].message.content


def test_tools() -> None:
    answer = ask(content="What's the weather in Beijing?", tools=TOOLS)
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Beijing"}')
    assert answer.choices[0].finish_reason == "tool_calls"
    chunks = list(ask(content="What's the weather in Beijing?", tools=TOOLS, stream=True))
    built = litellm.stream_chunk_builder(chunks)
    (streamed,) = built.choices[0].message.tool_calls
    assert (streamed.function.name, streamed.function.arguments) == (
        call.function.name,
        call.function.arguments,
    )


def test_thinking() -> None:
    message = ask(THINKING, "What is 2 plus 3?").choices[0].message
    assert message.content and message.reasoning_content
    reasoning = content = ""
    for chunk in ask(THINKING, "What is 2 plus 3?", stream=True):
        reasoning += getattr(chunk.choices[0].delta, "reasoning_content", None) or ""
        content += chunk.choices[0].delta.content or ""
    assert (reasoning, content) == (message.reasoning_content, message.content)


@pytest.mark.parametrize(
    ("more", "raised"),
    [
        ({"api_key": "sk-bad"}, litellm.AuthenticationError),
        ({"model": "dashscope/qwen-max"}, litellm.NotFoundError),
        ({"temperature": 5}, litellm.BadRequestError),
        ({"content": "far too long " * 4000}, litellm.ContextWindowExceededError),
    ],
)
def test_errors(more: dict[str, Any], raised: type[Exception]) -> None:
    with pytest.raises(raised):
        ask(**more)
