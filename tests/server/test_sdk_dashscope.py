"""The first surface of the real `dashscope` SDK, which both generations have, against a real server."""

from __future__ import annotations

import asyncio
import itertools
from http import HTTPStatus
from typing import Any

import dashscope
import httpx
import pytest
from dashscope import AioGeneration, Conversation, Generation, Models, Tokenization

from .conftest import Live
from .test_sdk_openai import CALL, WEATHER
from .ways import HAS_CLIENT, close_sessions

PARSERS = ("h11", "httptools")
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture(autouse=True)
def sdk(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashscope, "base_http_api_url", live.url + "/api/v1")
    monkeypatch.setattr(dashscope, "api_key", live.key)


def call(model: str = "tiny-instruct", **more: Any) -> Any:
    if not {"prompt", "messages"} & more.keys():
        more["prompt"] = "Hi"
    return Generation.call(model, **more)


def test_the_first_call_of_every_tutorial() -> None:
    response = call("qwen3-next-80b-a3b-instruct", max_tokens=200, temperature=0.7)
    assert response.status_code == HTTPStatus.OK
    assert response.output["text"] == "Hello there, friend." and response.output.choices is None
    assert response.output.finish_reason == "stop"
    assert response.usage.input_tokens > 0 and response.request_id


def test_compat_base_url_works_too(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashscope, "base_http_api_url", live.url + "/compatible-mode/v1/")
    assert call().output.text == "Hello there, friend."


def test_message_format(live: Live) -> None:
    response = call(messages=HI, result_format="message", seed=5, top_k=500, stop=["friend"])
    choice = response.output.choices[0]
    assert (
        choice.message == {"role": "assistant", "content": "Hello there, "} and choice.finish_reason == "stop"
    )
    assert response.output.text is None
    sampling = live.instruct.requests[0].sampling
    assert (sampling.seed, sampling.top_k, sampling.temperature) == (5, 0, 0.7)


def test_stop_ids(live: Live) -> None:
    tokenizer = live.instruct.tokenizer
    ids = tokenizer.encode("Hello there, friend.")
    assert call(stop=[ids[2]]).output.text == tokenizer.decode(ids[:2])
    response = call(stop=[ids[2:4]])
    assert response.output.text == tokenizer.decode(ids[:2]) and response.output.finish_reason == "stop"
    assert call(stop=[[10**6]]).status_code == 400
    assert call(stop=["a", 3]).status_code == 400


def test_streams_cumulative_and_incremental() -> None:
    whole = "Hello there, friend."
    for incremental in (None, False, True):
        texts = [r.output.text for r in call(stream=True, incremental_output=incremental)]
        assert len(texts) > 2
        if incremental:
            assert "".join(texts) == whole and texts[-1] == ""
        else:
            assert texts[-1] == whole and all(b.startswith(a) for a, b in itertools.pairwise(texts))
        last = None
        for last in call(stream=True, incremental_output=incremental, result_format="message"):
            assert last.output.choices[0].finish_reason in ("null", "stop")
        assert last is not None and last.output.choices[0].finish_reason == "stop"
        assert last.output.choices[0].message.content == ("" if incremental else whole)


def test_async_calls() -> None:
    async def ask() -> tuple[str, str]:
        whole = await AioGeneration.call("tiny-instruct", prompt="Hi")
        pieces = await AioGeneration.call("tiny-instruct", prompt="Hi", stream=True, incremental_output=True)
        return whole.output.text, "".join([piece.output.text async for piece in pieces])

    assert asyncio.run(_closing(ask())) == ("Hello there, friend.",) * 2


async def _closing(work: Any) -> Any:
    try:
        return await work
    finally:
        await close_sessions()


def test_thinking(live: Live) -> None:
    live.thinking.say("Let me think.\n</think>\n\nIt is blue.")
    response = call("tiny-thinking")
    message = response.output.choices[0].message
    assert (message.reasoning_content, message.content) == ("Let me think.", "It is blue.")
    thought = len(live.thinking.tokenizer.encode("Let me think.\n"))
    assert response.usage["output_tokens_details"] == {"reasoning_tokens": thought}
    reasoning = content = ""
    for frame in call("tiny-thinking", messages=HI, stream=True):
        message = frame.output.choices[0].message
        assert not (message.reasoning_content and message.content)
        reasoning, content = reasoning + message.reasoning_content, content + message.content
    assert (reasoning, content) == ("Let me think.", "It is blue.")


@pytest.mark.skipif(not HAS_CLIENT, reason="the first generation of the SDK merges nothing")
def test_thinking_merged_by_the_sdk(live: Live) -> None:
    live.thinking.say("Let me think.\n</think>\n\nIt is blue.")
    merged = list(call("tiny-thinking", messages=HI, stream=True, incremental_output=False))
    assert merged[-1].output.choices[0].message.content == "It is blue."


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"result_format": "text"},
            'The result_format parameter must be "message" when enable_thinking is true',
        ),
        ({"enable_thinking": False}, "The value of the enable_thinking parameter is restricted to True."),
        (
            {"thinking_budget": 0},
            "The thinking_budget parameter must be a positive integer and not greater than 81920",
        ),
    ],
)
def test_thinking_refusals(parameters: dict[str, Any], message: str) -> None:
    response = call("tiny-thinking", **parameters)
    assert (response.status_code, response.code, response.message) == (400, "InvalidParameter", message)


@pytest.mark.parametrize("incremental", [None, False, True])
def test_tool_calls(live: Live, incremental: bool | None) -> None:
    live.instruct.say(f"Let me look.\n{CALL}\n")
    response = call(messages=HI, tools=WEATHER)
    message = response.output.choices[0].message
    assert response.output.choices[0].finish_reason == "tool_calls" and message.content == "Let me look."
    (made,) = message.tool_calls
    assert made["function"] == {"name": "get_weather", "arguments": '{"city": "Köln"}'}
    assert made["index"] == 0 and made["type"] == "function" and made["id"].startswith("call_")
    frames = list(call(messages=HI, tools=WEATHER, stream=True, incremental_output=incremental))
    assert all(isinstance(frame.output.choices[0].message.content, str) for frame in frames)
    assert frames[-1].output.choices[0].finish_reason == "tool_calls"
    told = [c for frame in frames for c in frame.output.choices[0].message.get("tool_calls") or []]
    if incremental:
        assert [c["function"]["name"] for c in told] == ["get_weather"]
    assert told[-1]["function"] == made["function"] and told[-1]["index"] == 0


def test_n_answers(live: Live) -> None:
    live.instruct.say("first one", "second")
    response = call(messages=HI, result_format="message", n=2, seed=4)
    assert [c.message.content for c in response.output.choices] == ["first one", "second"]


@pytest.mark.skipif(not HAS_CLIENT, reason="the first generation of the SDK merges nothing")
def test_n_answers_merged_by_the_sdk(live: Live) -> None:
    live.instruct.say("first one", "second")
    response = call(messages=HI, result_format="message", n=2, seed=4)
    frames = list(
        call(messages=HI, result_format="message", n=2, seed=4, stream=True, incremental_output=False)
    )
    assert [c["message"]["content"] for c in frames[-1].output.choices] == ["first one", "second"]
    for count in ("input_tokens", "output_tokens", "total_tokens"):
        assert frames[-1].usage[count] == response.usage[count]


def test_several_prompts_in_one_call(live: Live) -> None:
    response = call(prompt=["a", "b", "c"])
    assert response.output.text == "Hello there, friend." and len(response.output.choices) == 3
    assert len(live.instruct.requests) == 3
    assert call(prompt=["a"] * 11).status_code == 400


def test_logprobs() -> None:
    response = call(messages=HI, result_format="message", logprobs=True, top_logprobs=2)
    told = response.output.choices[0]["logprobs"]["content"]
    assert "".join(token["token"] for token in told) == "Hello there, friend."
    assert [len(token["top_logprobs"]) for token in told] == [2] * len(told)
    assert call(top_logprobs=2).status_code == 400


def test_history_and_base_model(live: Live) -> None:
    call(prompt="And now?", history=[{"user": "Hello", "bot": "Good day"}])
    prompt = live.instruct.tokenizer.decode(live.instruct.requests[0].prompt)
    assert prompt.index("Hello") < prompt.index("Good day") < prompt.index("And now?")
    assert call("tiny-base", prompt="Once").output.text == "Hello there, friend."
    assert live.base.requests[0].prompt == tuple(live.base.tokenizer.encode("Once"))
    refused = call("tiny-base", messages=HI)
    assert refused.status_code == 400 and "no chat template" in refused.message


def test_errors_of_the_1x_surface(live: Live) -> None:
    bad = call(api_key="sk-bad")
    assert (bad.status_code, bad.code) == (401, "InvalidApiKey") and bad.output is None and bad.request_id
    missing = call("gpt-9")
    assert (missing.status_code, missing.code) == (404, "ModelNotFound")
    hot = call(temperature=2.5)
    assert (hot.status_code, hot.message) == (400, "Temperature should be in [0.0, 2.0)")
    (streamed,) = list(call(temperature="hot", stream=True))
    assert (streamed.status_code, streamed.message) == (400, "'temperature' must be Float")
    eager = call(incremental_output=True)
    assert eager.message == "parameter incremental_output only support stream call"


def test_error_in_mid_stream(live: Live) -> None:
    live.instruct.fail("Hello there")
    *frames, last = call(stream=True, result_format="message")
    assert frames and all(frame.status_code == 200 for frame in frames)
    assert (last.status_code, last.code) == (500, "InternalError") and last.request_id


def test_async_error_in_mid_stream(live: Live) -> None:
    live.instruct.fail("Hello there")

    async def ask() -> list[Any]:
        return [r async for r in await AioGeneration.call("tiny-instruct", prompt="Hi", stream=True)]

    last = asyncio.run(_closing(ask()))[-1]
    assert (last.status_code, last.code) == (500, "InternalError")


def test_models_and_tokenizer(live: Live) -> None:
    assert Models.list(page=1, page_size=2).output["total"] == 6
    assert Models.get("tiny-instruct").output["model"] == "tiny-instruct"
    assert Models.get("gpt-9").status_code == 404
    counted = Tokenization.call("tiny-instruct", prompt="the weather")
    assert counted.usage["input_tokens"] == len(live.instruct.tokenizer.encode("the weather"))
    assert "".join(counted.output["tokens"]) == "the weather"


def test_a_model_by_its_path(live: Live) -> None:
    """How the first generation of the SDK asks, whichever is installed."""
    url = live.url + "/api/v1/models/qwen3-next-80b-a3b-instruct"
    answer = httpx.get(url, headers=live.auth)
    told = answer.json()
    assert (told["output"]["model"], told["output"]["checkpoint"]) == (url.split("/")[-1], "tiny-instruct")
    assert told["request_id"] == answer.headers["X-Request-ID"]
    missing = httpx.get(live.url + "/api/v1/models/gpt-9", headers=live.auth)
    assert (missing.status_code, missing.json()["code"]) == (404, "ModelNotFound")
    assert httpx.get(url).status_code == 401


def test_conversation(live: Live) -> None:
    """The SDK keeps the history and sends it in its old shape."""
    chat = Conversation()
    first = chat.call("tiny-instruct", prompt="My name is Ana.", auto_history=True)
    assert first.output.text == "Hello there, friend."
    chat.call("tiny-instruct", prompt="What is my name?", auto_history=True)
    prompt = live.instruct.tokenizer.decode(live.instruct.requests[1].prompt)
    assert prompt.index("Ana") < prompt.index("Hello there") < prompt.index("What is my name?")
    said = chat.call("tiny-instruct", messages=HI, result_format="message")
    assert said.output.choices[0].message.content == "Hello there, friend."
    *_, last = chat.call("tiny-instruct", prompt="Hi", stream=True)
    assert last.output.text == "Hello there, friend."
