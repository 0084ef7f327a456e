"""Facts of a request in its answer: through the real SDKs where they are asked for, and nowhere else."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import dashscope
import httpx
import numpy as np
import openai
import pytest

from qnext.engine.request import Facts
from qnext.server.facts import written

from .conftest import Live

HI: Any = [{"role": "user", "content": "Hi"}]
NUMBERS = {
    "queue_seconds": 0.25,
    "prefill_seconds": 0.5,
    "decode_seconds": 1.5,
    "drafted_tokens": 9,
    "accepted_tokens": 6,
    "preemptions": 0,
}
ASK = {"return_facts": True}


@pytest.fixture
def client(live: Live) -> openai.OpenAI:
    live.instruct.say("Hello there, friend.", cached=2)
    live.base.say(" a time", cached=2)
    return openai.OpenAI(base_url=live.url + "/v1", api_key=live.key, max_retries=0, timeout=10)


def check(told: Any, computed: int) -> None:
    assert told == {**NUMBERS, "cached_tokens": 2, "computed_tokens": computed}


def test_nothing_is_written_unless_asked() -> None:
    assert written(None) == {}
    assert set(written(Facts(0, 0, 0, 0, 0, 0, 0, 0))) == {"facts"}
    experts = np.zeros((3, 2, 1), np.int16)
    assert written(Facts(0, 0, 0, 0, 0, 0, 0, 0, experts))["routed_experts"] == [[[0], [0]]] * 3


@pytest.mark.parametrize("stream", [False, True])
def test_openai_chat(client: openai.OpenAI, live: Live, stream: bool) -> None:
    answer = client.chat.completions.create(
        model="tiny-instruct", messages=HI, extra_body=ASK, stream=stream, stream_options=None
    )
    choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    assert [hasattr(each, "facts") for each in choices] == [False] * (len(choices) - 1) + [True]
    ids = len(live.instruct.tokenizer.encode("Hello there, friend.")) + 1
    check(choices[-1].facts, len(live.instruct.requests[0].prompt) + ids - 1)
    assert not hasattr(choices[-1], "routed_experts") and not live.instruct.requests[0].routed_experts
    plain = client.chat.completions.create(model="tiny-instruct", messages=HI)
    assert not hasattr(plain.choices[0], "facts")
    assert plain.usage is not None and plain.usage.prompt_tokens_details is not None
    assert plain.usage.prompt_tokens_details.cached_tokens == 2


def test_every_choice_has_its_own(client: openai.OpenAI, live: Live) -> None:
    live.instruct.say("one", "two, and more", cached=2)
    answer = client.chat.completions.create(model="tiny-instruct", messages=HI, n=2, extra_body=ASK)
    first, second = (each.model_dump()["facts"]["computed_tokens"] for each in answer.choices)
    assert first < second


@pytest.mark.parametrize("pieces", [1, 50])
@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_waits_for_the_facts(
    client: openai.OpenAI, live: Live, stream: bool, pieces: int
) -> None:
    live.instruct.say("Hello there, friend.", pieces=pieces)
    answer = client.chat.completions.create(
        model="tiny-instruct", messages=HI, stop="there", extra_body=ASK, stream=stream
    )
    last = list(answer)[-1].choices[0] if stream else answer.choices[0]
    assert last.finish_reason == "stop" and last.facts["decode_seconds"] == 1.5
    if not stream:
        assert answer.choices[0].message.content == "Hello "
        assert answer.usage.completion_tokens == len(live.instruct.tokenizer.encode("Hello there"))


@pytest.mark.parametrize("stream", [False, True])
def test_completions_and_routed_experts(client: openai.OpenAI, live: Live, stream: bool) -> None:
    answer = client.completions.create(
        model="tiny-base", prompt="Once", extra_body={"return_routed_experts": True}, stream=stream
    )
    choices = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    last = choices[-1]
    assert live.base.requests[0].routed_experts
    tokens = last.facts["computed_tokens"]
    assert np.asarray(last.routed_experts).shape == (tokens, 2, 2)
    assert np.asarray(last.routed_experts).ravel().tolist() == [n % 7 for n in range(4 * tokens)]


@pytest.mark.parametrize("form", ["text", "message"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("incremental", [False, True])
def test_dashscope(live: Live, form: str, stream: bool, incremental: bool) -> None:
    live.instruct.say("Hello there, friend.", cached=2)
    dashscope.base_http_api_url = live.url + "/api/v1"
    more: dict[str, Any] = {"stream": True, "incremental_output": incremental} if stream else {}
    answer = dashscope.Generation.call(
        model="tiny-instruct",
        messages=HI,
        api_key=live.key,
        result_format=form,
        return_facts=True,
        return_routed_experts=True,
        **more,
    )
    frames = list(answer) if stream else [answer]
    assert all(frame.status_code == HTTPStatus.OK for frame in frames)
    places = [frame.output if form == "text" else frame.output.choices[0] for frame in frames]
    assert ["facts" in place for place in places] == [False] * (len(places) - 1) + [True]
    check(dict(places[-1]["facts"]), len(places[-1]["routed_experts"]))
    assert frames[-1].usage.prompt_tokens_details["cached_tokens"] == 2


@pytest.mark.parametrize("name", ["return_facts", "return_routed_experts"])
def test_the_wish_is_a_boolean(http: httpx.Client, name: str) -> None:
    body = {"model": "tiny-instruct", "messages": HI, name: "yes"}
    refused = http.post("/v1/chat/completions", json=body)
    assert refused.status_code == 400 and name in refused.json()["error"]["message"]
