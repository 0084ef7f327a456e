"""qwen-agent's `qwen_dashscope`, over the native protocol: chat, thinking, tools, an agent."""

from __future__ import annotations

import os
from typing import Any

import pytest
from qwen_agent.agents import Assistant
from qwen_agent.llm import get_chat_model
from qwen_agent.llm.base import ModelServiceError
from qwen_agent.tools.base import BaseTool, register_tool

INSTRUCT, THINKING = "qwen3-next-80b-a3b-instruct", "qwen3-next-80b-a3b-thinking"
QUESTION = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER = {
    "name": "get_weather",
    "description": "Get current weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


def config(model: str = INSTRUCT, **more: Any) -> dict[str, Any]:
    return {
        "model": model,
        "model_type": "qwen_dashscope",
        "api_key": os.environ["QNEXT_KEY"],
        "base_http_api_url": os.environ["QNEXT_URL"] + "/api/v1",
        "generate_cfg": {"temperature": 0, "max_tokens": 80, "seed": 1, "max_retries": 0} | more,
    }


@pytest.mark.parametrize("raw", [True, False])
def test_stream(raw: bool) -> None:
    frames = list(get_chat_model(config(use_raw_api=raw)).chat(messages=QUESTION, stream=True))
    lengths = [len(frame[-1]["content"]) for frame in frames if frame]
    assert lengths == sorted(lengths) and len(lengths) > 2 and lengths[-1]


def test_whole_answers_are_the_streamed_ones() -> None:
    model = get_chat_model(config(use_raw_api=False))
    (answer,) = model.chat(messages=QUESTION, stream=False)
    assert answer["content"] == list(model.chat(messages=QUESTION, stream=True))[-1][-1]["content"]


def test_thinking() -> None:
    model = get_chat_model(config(THINKING))
    frames = list(model.chat(messages=[{"role": "user", "content": "What is 2 plus 3?"}], stream=True))
    reasoning = [message["reasoning_content"] for message in frames[-1] if message.get("reasoning_content")]
    content = [message["content"] for message in frames[-1] if message.get("content")]
    assert len(reasoning) == len(content) == 1 and "think>" not in reasoning[0] + content[0]


def test_tools_of_the_protocol() -> None:
    model = get_chat_model(config(use_raw_api=True))
    asked = [{"role": "user", "content": "What's the weather in Beijing?"}]
    frames = list(model.chat(messages=asked, functions=[WEATHER], stream=True))
    (call,) = [message["function_call"] for message in frames[-1] if message.get("function_call")]
    assert (call["name"], call["arguments"]) == ("get_weather", '{"city": "Beijing"}')


def test_an_agent_with_a_tool() -> None:
    seen: list[str] = []

    @register_tool("get_weather", allow_overwrite=True)
    class Weather(BaseTool):
        description = WEATHER["description"]
        parameters = WEATHER["parameters"]

        def call(self, params: Any, **kwargs: Any) -> str:
            seen.append(str(params))
            return "sunny"

    agent = Assistant(llm=config(use_raw_api=True), function_list=["get_weather"])
    asked = [{"role": "user", "content": "What's the weather in Beijing?"}]
    answers = list(agent.run(messages=asked))
    assert seen and "Beijing" in seen[0]
    assert [message["role"] for message in answers[-1]][:2] == ["assistant", "function"]


def test_refusals() -> None:
    with pytest.raises(ModelServiceError, match="Temperature should be in"):
        get_chat_model(config(temperature=5, use_raw_api=False)).chat(messages=QUESTION, stream=False)
    with pytest.raises(ModelServiceError, match="Range of input length should be"):
        long = [{"role": "user", "content": "far too long " * 4000}]
        get_chat_model(config(max_input_tokens=10**6, use_raw_api=False)).chat(messages=long, stream=False)
