"""OpenAI chunks and bodies, to the letter."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qnext.server import openai, openai_completions
from qnext.server.errors import ApiError
from qnext.server.exchange import Answer, Echo, Logprob
from qnext.server.openai import ChatReply
from qnext.server.openai_completions import CompletionReply

from .test_dashscope import CALL, THOUGHT, event
from .test_validation import HI, INSTRUCT, THINKING


def chunks(reply: Any, *events: Any) -> list[dict[str, Any]]:
    answer, told = Answer(), b""
    for each in events:
        answer.add(each)
        told += reply.frames(each, answer)
    told += reply.end(answer)
    lines = told.decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def test_thinking_chunks() -> None:
    told = chunks(ChatReply("r", "m", 5), *THOUGHT)
    assert [chunk["choices"][0]["delta"] for chunk in told] == [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "Hm.", "content": None},
        {"content": "Yes"},
        {"content": "."},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in told] == [None] * 4 + ["stop"]
    head = {key: value for key, value in told[0].items() if key != "choices"}
    assert head == {
        "id": "chatcmpl-r",
        "object": "chat.completion.chunk",
        "created": 5,
        "model": "m",
        "system_fingerprint": None,
    }


def test_every_choice_begins_with_its_role() -> None:
    told = chunks(
        ChatReply("r", "m", 5), event(1, content="b"), event(0, content="a"), event(1, finish="stop")
    )
    firsts = [c["choices"][0] for c in told if c["choices"][0]["delta"].get("role")]
    assert [choice["index"] for choice in firsts] == [1, 0]


def test_usage_chunk() -> None:
    told = chunks(ChatReply("r", "m", 5, include_usage=True), *THOUGHT)
    assert [chunk["usage"] for chunk in told[:-1]] == [None] * 5
    assert told[-1]["choices"] == []
    assert told[-1]["usage"] == {
        "prompt_tokens": 10,
        "completion_tokens": 6,
        "total_tokens": 16,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }


def test_tool_chunks() -> None:
    told = chunks(ChatReply("r", "m", 5), event(call=CALL), event(call=CALL), event(finish="tool_calls"))
    deltas = [chunk["choices"][0]["delta"] for chunk in told]
    function = {"name": "f", "arguments": "{}"}
    assert deltas[1] == {
        "tool_calls": [{"index": 0, "id": "call_1", "type": "function", "function": function}]
    }
    assert deltas[2]["tool_calls"][0]["index"] == 1 and deltas[3] == {}


def test_body() -> None:
    answer = Answer()
    for each in (*THOUGHT[:-1], event(call=CALL), event(finish="tool_calls")):
        answer.add(each)
    body = ChatReply("r", "m", 5).body(answer)
    assert body["object"] == "chat.completion" and body["usage"]["total_tokens"] == 16
    (choice,) = body["choices"]
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "tool_calls", None)
    assert choice["message"]["content"] == "Yes." and choice["message"]["reasoning_content"] == "Hm."
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == "{}"


def test_failures_say_so_in_the_stream() -> None:
    for reply in (ChatReply("r", "m", 5), CompletionReply("r", "m", 5)):
        frame = reply.failure(ApiError("internal", "Sorry"), Answer())
        assert json.loads(frame.removeprefix(b"data: ")) == {
            "error": {"message": "Sorry", "type": "internal_error", "param": None, "code": "internal_error"},
            "request_id": "r",
        }


def test_stream_options() -> None:
    body = {"model": "m", "messages": HI, "stream_options": {"include_usage": True}}
    assert openai.parse(body, INSTRUCT, request_id="r", created=1)[1].include_usage
    for wrong in (True, {"include_usage": 1}):
        with pytest.raises(ApiError):
            openai.parse({**body, "stream_options": wrong}, INSTRUCT, request_id="r", created=1)


def complete(**body: Any) -> Any:
    return openai_completions.parse({"model": "m", **body}, THINKING, request_id="r", created=1)


def test_completion_chunks() -> None:
    token = Logprob("Yes", b"Yes", -0.5)
    reply = CompletionReply("r", "m", 5, logprobs=True)
    first, second = Logprob("Q", b"Q", None), Logprob("!", b"!", -1.0, (Logprob("?", b"?", -0.25),))
    told = chunks(
        reply,
        event(2, echo=Echo("Q!", (first, second))),
        event(2, content="Yes", logprobs=(token,)),
        event(2, content="!", logprobs=(token, token)),
        event(2, finish="stop"),
    )
    assert [chunk["choices"][0]["text"] for chunk in told] == ["Q!", "Yes", "!", ""]
    assert told[0]["object"] == "text_completion" and told[0]["id"] == "cmpl-r"
    assert [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in told] == [[0, 1], [2], [5, 8], []]
    assert told[0]["choices"][0]["logprobs"]["token_logprobs"] == [None, -1.0]
    assert told[0]["choices"][0]["logprobs"]["top_logprobs"] == [None, {"?": -0.25}]
    assert (
        told[-1]["choices"][0]["finish_reason"] == "stop" and told[0]["choices"][0]["finish_reason"] is None
    )


def test_completion_prompts() -> None:
    assert complete(prompt="a")[0].prompts == ("a",)
    assert complete(prompt=["a", ""])[0].prompts == ("a", "")
    assert complete(prompt=[1, 2])[0].prompts == ((1, 2),)
    assert complete(prompt=[[1], [2, 3]])[0].prompts == ((1,), (2, 3))
    for wrong in (None, 5, [], [1, "a"], [[1], "a"], [[]], [-1], [1000], [True], ["a"] * 257, {"a": 1}):
        with pytest.raises(ApiError):
            complete(prompt=wrong)


def test_completion_wishes() -> None:
    asked, reply = complete(prompt="a", logprobs=2, enable_thinking=False, tools="ignored", stream=True)
    assert asked.sampling.logprobs == 2 and asked.stream and not asked.tools and reply.logprobs
    assert complete(prompt="a", logprobs=0)[1].logprobs and not complete(prompt="a")[1].logprobs
    for wrong in (
        {"suffix": "x"},
        {"echo": 1},
        {"max_tokens": 0},
        {"max_tokens": False, "echo": True},
        {"best_of": 2},
        {"best_of": 5, "n": 5},
        {"best_of": "1"},
        {"logprobs": 6},
        {"logprobs": True},
    ):
        with pytest.raises(ApiError):
            complete(prompt="a", **wrong)
    assert complete(prompt="a", n=2, best_of=2)[0].sampling.n == 2


def test_echo_wishes() -> None:
    asked, reply = complete(prompt=[1], echo=True, logprobs=3, max_tokens=0)
    assert asked.echo and asked.silent and reply.logprobs and asked.sampling.prompt_logprobs == 3
    asked, reply = complete(prompt=[1], echo=True)
    assert asked.echo and not asked.silent and not reply.logprobs and asked.sampling.prompt_logprobs is None
    assert complete(prompt="a", logprobs=3)[0].sampling.prompt_logprobs is None
