"""Limits and the ledger hold in the younger dialects too, each in its own words."""

from __future__ import annotations

from typing import Any

import anthropic
import httpx
import openai
import pytest
from anthropic import Anthropic
from openai import OpenAI

from .conftest import Live
from .test_gate import entries

HI: Any = [{"role": "user", "content": "Hi"}]


def test_one_request_a_minute(live: Live) -> None:
    _, secret = live.keys.create("slow", rpm=1)
    with OpenAI(base_url=live.url + "/v1", api_key=secret, max_retries=0) as client:
        client.responses.create(model="tiny-instruct", input="Hi")
        with pytest.raises(openai.RateLimitError) as caught:
            client.responses.create(model="tiny-instruct", input="Hi")
    assert caught.value.code == "limit_requests" and int(caught.value.response.headers["retry-after"]) >= 1
    with (
        Anthropic(base_url=live.url, api_key=secret, max_retries=0) as other,
        pytest.raises(anthropic.RateLimitError) as refused,
    ):
        other.messages.create(model="tiny-instruct", max_tokens=9, messages=HI)
    body: Any = refused.value.body
    assert body["error"]["type"] == "rate_limit_error" and "retry-after" in refused.value.response.headers
    free = httpx.post(
        live.url + "/v1/messages/count_tokens",
        json={"model": "tiny-instruct", "messages": HI},
        headers={"x-api-key": secret},
    )
    assert free.status_code == 200  # nothing is computed


def test_an_unpaid_account(live: Live) -> None:
    _, secret = live.keys.create("poor", free_tokens=0, balance=0)
    with (
        Anthropic(base_url=live.url, api_key=secret, max_retries=0) as client,
        pytest.raises(anthropic.BadRequestError, match="good standing") as caught,
    ):
        client.messages.create(model="tiny-instruct", max_tokens=9, messages=HI)
    body: Any = caught.value.body
    assert body["error"]["type"] == "billing_error" and body["error"]["error_code"] == 10402


@pytest.mark.parametrize("stream", [True, False])
def test_what_is_told_is_what_is_settled(live: Live, stream: bool) -> None:
    key, secret = live.keys.create("exact", free_tokens=100_000)
    told = 0
    with OpenAI(base_url=live.url + "/v1", api_key=secret, max_retries=0) as client:
        answer: Any = client.responses.create(model="tiny-instruct", input="Hi", stream=stream)
        if stream:
            answer = list(answer)[-1].response
        told += answer.usage.total_tokens
        scored = client.completions.create(
            model="tiny-base", prompt=["Once upon", "a time"], echo=True, logprobs=1, max_tokens=0
        )
        assert scored.usage is not None and scored.usage.completion_tokens == 0
        told += scored.usage.total_tokens
    with Anthropic(base_url=live.url, api_key=secret, max_retries=0) as other:
        with other.messages.stream(model="tiny-instruct", max_tokens=99, messages=HI) as opened:
            usage = opened.get_final_message().usage
        told += usage.input_tokens + (usage.cache_read_input_tokens or 0) + usage.output_tokens
    assert sum(entry.input_tokens + entry.output_tokens for entry in entries(live, key.id, 3)) == told
