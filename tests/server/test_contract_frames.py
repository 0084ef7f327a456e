"""The contract's rules of frames, each held against every kind of stream, byte by byte."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from .conftest import Live
from .ways import HI

pytestmark = pytest.mark.parametrize("running", ["httptools"], indirect=True)
INSTRUCT, THINKING = "qwen3-next-80b-a3b-instruct", "qwen3-next-80b-a3b-thinking"
TOOLS = [{"type": "function", "function": {"name": "get_weather"}}]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>'
# More bytes a character than tokens show at once, line ends that are none in JSON, and a family of four.
HARD = "今天天气很好 \u2028 é\u0085 👩‍👩‍👧‍👦, oui.\nEnd"
THOUGHT = "Let me think.\n</think>\n\nIt is blue."


@dataclass(frozen=True)
class Case:
    """A stream to ask for, what the model says, and the text its user reads."""

    says: str
    text: str
    params: dict[str, Any]
    model: str = INSTRUCT
    finish: str = "stop"


CASES: dict[str, Case] = {
    "plain": Case("Hello there, friend.", "Hello there, friend.", {}),
    "text": Case("Hello there, friend.", "Hello there, friend.", {"result_format": "text"}),
    "hard": Case(HARD, HARD, {}),
    "hard text": Case(HARD, HARD, {"result_format": "text"}),
    "stop": Case("Hello there, friend.", "Hello ", {"stop": "there"}),
    "cut": Case("Hello", "Hell", {"max_completion_tokens": 4}, finish="length"),
    "call": Case(f"Let me look.\n{CALL}", "Let me look.", {"tools": TOOLS}, finish="tool_calls"),
    "thinking": Case(THOUGHT, "It is blue.", {}, THINKING),
    "silent": Case("", "", {}),
    "two": Case("Hello", "Hello", {"n": 2}),
    "logprobs": Case("Hello", "Hello", {"logprobs": True, "top_logprobs": 2}),
}


@dataclass(frozen=True)
class Stream:
    headers: httpx.Headers
    blocks: list[str]
    payloads: list[Any]


def native(live: Live, case: Case, incremental: bool) -> Stream:
    live.instruct.say(case.says)
    live.thinking.say(case.says)
    params = {"result_format": "message", "incremental_output": incremental, **case.params}
    answer = httpx.post(
        live.url + "/api/v1/services/aigc/text-generation/generation",
        json={"model": case.model, "input": {"messages": HI}, "parameters": params},
        headers=live.auth | {"X-DashScope-SSE": "enable"},
    )
    assert answer.status_code == 200 and answer.text.endswith("\n\n")
    blocks = answer.content.decode().removesuffix("\n\n").split("\n\n")
    return Stream(answer.headers, blocks, [json.loads(block.split("data:", 1)[1]) for block in blocks])


def choice(payload: Any) -> tuple[int, str, str]:
    """Index, content and finish reason of a native frame in either format."""
    output = payload["output"]
    if "text" in output:
        return 0, output["text"], output["finish_reason"]
    (only,) = output["choices"]
    return only["index"], only["message"]["content"], only["finish_reason"]


def the_response_is_an_unbuffered_event_stream(stream: Stream, case: Case, incremental: bool) -> None:
    assert stream.headers["content-type"] == "text/event-stream;charset=UTF-8"
    assert stream.headers["cache-control"] == "no-cache" and stream.headers["x-accel-buffering"] == "no"
    assert "content-encoding" not in stream.headers


def ids_count_from_one_and_no_space_follows_a_colon(stream: Stream, case: Case, incremental: bool) -> None:
    for number, block in enumerate(stream.blocks, 1):
        assert re.fullmatch(rf"id:{number}\nevent:result\n:HTTP_STATUS/200\ndata:\{{.*\}}", block)
        assert len(block.splitlines()) == 4  # by every notion of a line
    assert not any("[DONE]" in block for block in stream.blocks)


def every_frame_has_output_usage_and_the_request(stream: Stream, case: Case, incremental: bool) -> None:
    for payload in stream.payloads:
        assert payload["output"] and payload["request_id"] == stream.headers["x-request-id"]
        assert not payload.keys() & {"code", "message"}
        usage = payload["usage"]
        assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    if case.params.get("n") is None:
        totals = [payload["usage"]["output_tokens"] for payload in stream.payloads]
        assert totals == sorted(totals)


def the_finish_is_the_word_null_until_the_last(stream: Stream, case: Case, incremental: bool) -> None:
    for index in range(case.params.get("n", 1)):
        told = [choice(payload) for payload in stream.payloads if choice(payload)[0] == index]
        *before, (_, content, finish) = told
        assert finish == case.finish and all(each[2] == "null" for each in before)
        assert content == ("" if incremental else case.text)


def contents_join_to_the_text_and_no_character_is_cut(stream: Stream, case: Case, incremental: bool) -> None:
    for index in range(case.params.get("n", 1)):
        contents = [choice(payload)[1] for payload in stream.payloads if choice(payload)[0] == index]
        assert all(isinstance(content, str) and "\ufffd" not in content for content in contents)
        if incremental:
            assert "".join(contents) == case.text
        else:
            assert contents[-1] == case.text
            assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(contents))


def messages_have_a_role_and_the_keys_of_their_model(stream: Stream, case: Case, incremental: bool) -> None:
    for payload in stream.payloads:
        if "text" in payload["output"]:
            keys = {"text", "finish_reason"} | ({"text_delta"} if incremental else set())
            assert payload["output"].keys() == keys
            continue
        message = payload["output"]["choices"][0]["message"]
        assert message["role"] == "assistant"
        assert ("reasoning_content" in message) == (case.model == THINKING)
        if incremental and message.get("reasoning_content"):
            assert message["content"] == ""


RULES: list[Callable[[Stream, Case, bool], None]] = [
    the_response_is_an_unbuffered_event_stream,
    ids_count_from_one_and_no_space_follows_a_colon,
    every_frame_has_output_usage_and_the_request,
    the_finish_is_the_word_null_until_the_last,
    contents_join_to_the_text_and_no_character_is_cut,
    messages_have_a_role_and_the_keys_of_their_model,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("incremental", [True, False])
def test_native(live: Live, rule: Callable[..., None], incremental: bool) -> None:
    for case in CASES.values():
        if incremental or case.model != THINKING:
            rule(native(live, case, incremental), case, incremental)


def compat(live: Live, case: Case, usage: bool) -> Stream:
    live.instruct.say(case.says)
    live.thinking.say(case.says)
    body = {"model": case.model, "messages": HI, "stream": True, **case.params}
    if usage:
        body["stream_options"] = {"include_usage": True}
    answer = httpx.post(live.url + "/compatible-mode/v1/chat/completions", json=body, headers=live.auth)
    assert answer.status_code == 200 and answer.text.endswith("\n\n")
    blocks = answer.content.decode().removesuffix("\n\n").split("\n\n")
    assert all(re.fullmatch(r"data: .+", block) for block in blocks) and blocks.pop() == "data: [DONE]"
    assert all(len(block.splitlines()) == 1 for block in blocks)
    return Stream(answer.headers, blocks, [json.loads(block[len("data: ") :]) for block in blocks])


def chunks_are_of_one_answer(stream: Stream, case: Case, usage: bool) -> None:
    assert stream.headers["content-type"] == "text/event-stream;charset=UTF-8"
    for payload in stream.payloads:
        assert payload["id"] == f"chatcmpl-{stream.headers['x-request-id']}"
        assert (payload["object"], payload["model"]) == ("chat.completion.chunk", case.model)
    assert len({payload["created"] for payload in stream.payloads}) == 1


def usage_comes_once_and_only_when_asked_for(stream: Stream, case: Case, usage: bool) -> None:
    *before, last = stream.payloads
    if not usage:
        assert all("usage" not in payload and payload["choices"] for payload in stream.payloads)
        return
    assert all(payload["usage"] is None and payload["choices"] for payload in before)
    told = last["usage"]
    assert last["choices"] == [] and told["total_tokens"] == told["prompt_tokens"] + told["completion_tokens"]
    assert set(told) >= {"prompt_tokens_details", "completion_tokens_details"}


def each_choice_opens_with_its_role_and_ends_with_its_finish(stream: Stream, case: Case, usage: bool) -> None:
    for index in range(case.params.get("n", 1)):
        first, *between, last = choices(stream, index)
        assert first["delta"] == {"role": "assistant", "content": ""} and first["finish_reason"] is None
        assert last["delta"] == {} and last["finish_reason"] == case.finish
        assert all(each["finish_reason"] is None for each in between)


def a_delta_carries_one_thing_and_all_join_to_the_text(stream: Stream, case: Case, usage: bool) -> None:
    for index in range(case.params.get("n", 1)):
        text = ""
        for each in choices(stream, index)[1:]:
            delta = each["delta"]
            kinds = [name for name in ("content", "reasoning_content", "tool_calls") if delta.get(name)]
            assert len(kinds) == (0 if each["finish_reason"] else 1)
            text += delta.get("content") or ""
        assert text == case.text and "\ufffd" not in text


def choices(stream: Stream, index: int) -> list[Any]:
    return [each for payload in stream.payloads for each in payload["choices"] if each["index"] == index]


CHUNK_RULES: list[Callable[[Stream, Case, bool], None]] = [
    chunks_are_of_one_answer,
    usage_comes_once_and_only_when_asked_for,
    each_choice_opens_with_its_role_and_ends_with_its_finish,
    a_delta_carries_one_thing_and_all_join_to_the_text,
]


@pytest.mark.parametrize("rule", CHUNK_RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("usage", [False, True])
def test_compat(live: Live, rule: Callable[..., None], usage: bool) -> None:
    for case in CASES.values():
        rule(compat(live, case, usage), case, usage)


def test_silence_is_filled_with_comments(live: Live) -> None:
    """Before the first token and between tokens; a client that reads frames sees none of it."""
    live.instruct.delay = 0.7
    live.instruct.say("Hi", pieces=9)
    body = {"model": INSTRUCT, "input": {"messages": HI}}
    answer = httpx.post(
        live.url + "/api/v1/services/aigc/text-generation/generation",
        json=body,
        headers=live.auth | {"X-DashScope-SSE": "enable"},
    )
    assert answer.text.count(":keep-alive\n\n") >= 2 and answer.text.count("id:") == 3


@pytest.mark.parametrize("said", ["", "Hello there"])
def test_an_error_is_a_frame_that_every_sdk_reads(live: Live, said: str) -> None:
    live.instruct.fail(said)
    answer = httpx.post(
        live.url + "/api/v1/services/aigc/text-generation/generation",
        json={"model": INSTRUCT, "input": {"messages": HI}, "parameters": {"incremental_output": True}},
        headers=live.auth | {"X-DashScope-SSE": "enable"},
    )
    if not said:  # nothing was sent: it is told as any other error
        assert answer.status_code == 500 and answer.json()["code"] == "InternalError"
        return
    *before, last = answer.text.removesuffix("\n\n").split("\n\n")
    assert re.fullmatch(
        rf"id:{len(before) + 1}\nevent:error\n:HTTP_STATUS/500\nstatus:500\ndata:\{{.*\}}", last
    )
    told = json.loads(last.split("data:", 1)[1])
    assert told["code"] == "InternalError" and told["request_id"] == answer.headers["x-request-id"]
