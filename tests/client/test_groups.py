"""Groups of prompts, against a real server."""

from __future__ import annotations

from functools import partial

import pytest
from dashscope import Generation

from qnext.client import answer_all

from ..server.conftest import Live


def test_as_many_answers_as_prompts(live: Live) -> None:
    call = partial(Generation.call, api_key=live.key, base_address=live.url + "/api/v1")
    prompts = [f"number {n}" for n in range(23)]
    assert answer_all(call, prompts, model="tiny-instruct", seed=1) == ["Hello there, friend."] * 23
    seen = [live.instruct.tokenizer.decode(request.prompt) for request in live.instruct.requests]
    assert all(prompt in text for prompt, text in zip(prompts, seen, strict=True))
    assert answer_all(call, [], model="tiny-instruct") == []


def test_a_failed_call_is_raised(live: Live) -> None:
    call = partial(Generation.call, api_key=live.key, base_address=live.url + "/api/v1")
    with pytest.raises(RuntimeError, match=r"ModelNotFound: .*gpt-9.* \(request [0-9a-f-]{36}\)"):
        answer_all(call, ["Hi"], model="gpt-9")
    for size in (0, 11):
        with pytest.raises(ValueError, match=f"size is {size}"):
            answer_all(call, ["Hi"], size=size, model="tiny-instruct")
