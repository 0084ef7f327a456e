"""`echo` of completions, through the real SDK; the fake engine has an opinion on every token of a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from .conftest import Live

TEXT = "Once upon a time"


@pytest.fixture
def client(live: Live) -> Iterator[OpenAI]:
    with OpenAI(base_url=live.url + "/v1", api_key=live.key, max_retries=0, timeout=10) as client:
        yield client


def texts(live: Live, ids: Any) -> list[str]:
    return [live.base.tokenizer.decode([token], skip_control=False) for token in ids]


def test_the_prompt_and_its_logprobs_come_first(client: OpenAI, live: Live) -> None:
    ids = live.base.tokenizer.encode(TEXT)
    for prompt in (TEXT, ids):
        answer = client.completions.create(
            model="tiny-base", prompt=prompt, echo=True, logprobs=2, max_tokens=1, temperature=0
        )
        (choice,) = answer.choices
        said = live.base.tokenizer.encode("Hello there, friend.")[:1]
        assert choice.text == TEXT + texts(live, said)[0] and choice.finish_reason == "length"
        told: Any = choice.logprobs
        assert told.tokens == texts(live, [*ids, *said])
        assert told.token_logprobs == [None, *(-i / 8 for i in range(1, len(ids))), -0.5]
        assert told.top_logprobs[0] is None and all(len(top) == 2 for top in told.top_logprobs[1:])
        assert max(told.top_logprobs[1].values()) == 0.0  # the likeliest, not the one that was there
        assert told.text_offset[: len(ids) + 1] == [
            len("".join(texts(live, ids[:i]))) for i in range(len(ids) + 1)
        ]
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(ids), 1)


@pytest.mark.parametrize("stream", [False, True])
def test_no_token_at_all(client: OpenAI, live: Live, stream: bool) -> None:
    ids = live.base.tokenizer.encode(TEXT)
    asked: Any = {
        "model": "tiny-base",
        "prompt": [ids, ids[:1]],
        "echo": True,
        "logprobs": 1,
        "max_tokens": 0,
    }
    found: list[Any] = [None, None]
    if stream:
        chunks = list(client.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
        for chunk in chunks[:-1]:
            (choice,) = chunk.choices
            if choice.finish_reason is None:
                found[choice.index] = choice
            else:
                assert choice.text == "" and choice.finish_reason == "length"
        usage = chunks[-1].usage
    else:
        answer = client.completions.create(**asked)
        found = answer.choices
        assert {choice.finish_reason for choice in answer.choices} == {"length"}
        usage = answer.usage
    assert [choice.text for choice in found] == [TEXT, texts(live, ids[:1])[0]]
    assert [len(choice.logprobs.tokens) for choice in found] == [len(ids), 1]
    assert found[1].logprobs.token_logprobs == [None]
    assert usage is not None and (usage.completion_tokens, usage.prompt_tokens) == (0, len(ids) + 1)
    assert [request.sampling.max_tokens for request in live.base.requests] == [1, 1]


def test_echo_alone(client: OpenAI, live: Live) -> None:
    start = live.base.tokenizer.control["<|im_start|>"]
    ids = [start, *live.base.tokenizer.encode("user")]
    answer = client.completions.create(model="tiny-base", prompt=ids, echo=True, n=2, seed=1)
    assert [choice.text for choice in answer.choices] == ["<|im_start|>userHello there, friend."] * 2
    assert answer.choices[0].logprobs is None
    assert all(request.sampling.prompt_logprobs is None for request in live.base.requests)


def test_stops_do_not_look_into_the_prompt(client: OpenAI) -> None:
    answer = client.completions.create(model="tiny-base", prompt="there", echo=True, stop=" there")
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("thereHello", "stop")


def test_failures_before_and_behind_the_echo(http: httpx.Client, live: Live) -> None:
    asked = {"model": "tiny-base", "prompt": TEXT, "echo": True, "max_tokens": 0}
    live.base.fail("")
    assert http.post("/v1/completions", json=asked).status_code == 500
    assert http.post("/v1/completions", json=asked | {"echo": False}).json()["error"]["param"] == "max_tokens"


@pytest.mark.parametrize(
    ("more", "word"),
    [({"suffix": "x"}, "suffix"), ({"best_of": 3}, "best_of"), ({"n": 5}, r"n should be \[1, 4\]")],
)
def test_refusals_name_the_field(client: OpenAI, more: Any, word: str) -> None:
    with pytest.raises(openai.BadRequestError, match=word) as caught:
        client.completions.create(model="tiny-base", prompt=TEXT, **more)
    assert caught.value.param == next(iter(more))
