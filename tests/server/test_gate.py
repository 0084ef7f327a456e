"""What a key's limits do to its requests, on the wire."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest

from qnext.engine.request import SamplingParams
from qnext.server import openai
from qnext.server.exchange import ChatRequest, Conversation
from qnext.server.gate import Gate, _frames
from qnext.server.ledger import Entry
from qnext.server.prices import UNIT, amount
from qnext.server.service import Service
from qnext.server.settings import Settings
from qnext.server.sse import KEEP_ALIVE, ClientGone
from qnext.text.messages import Message

from .conftest import Live
from .test_app import CHAT, NATIVE, SSE, chat, frames, native

PARSERS = ("h11", "httptools")


@pytest.fixture(autouse=True)
def in_one_minute(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens are counted by the minutes of a clock, and a new one may begin between any two requests."""
    monkeypatch.setattr(live.admission.limits, "_clock", lambda: 1_795_600_010.0)


def limited(live: Live, **limits: int | None) -> tuple[int, dict[str, str]]:
    """A key of its own with these limits: its number and its header."""
    key, secret = live.keys.create("limited", **limits)
    return key.id, {"Authorization": f"Bearer {secret}"}


def entries(live: Live, key_id: int, count: int = 1) -> list[Entry]:
    """The rows of a key, once there are `count`; they are written by a thread."""
    until = time.monotonic() + 5
    while len(found := live.admission.ledger.entries(key_id)) < count:
        assert time.monotonic() < until, found
        time.sleep(0.005)
    return found


@pytest.mark.parametrize("stream", [False, True])
def test_requests_a_minute(http: httpx.Client, live: Live, stream: bool) -> None:
    _, auth = limited(live, rpm=2)
    for left in ("1", "0"):
        answer = http.post(CHAT, json=chat(stream=stream), headers=auth)
        assert answer.status_code == 200
        assert answer.headers["x-ratelimit-limit-requests"] == "2"
        assert answer.headers["x-ratelimit-remaining-requests"] == left
    refused = http.post(CHAT, content=b"not read", headers=auth)
    assert refused.status_code == 429 and refused.json()["error"]["code"] == "limit_requests"
    assert 50 <= int(refused.headers["retry-after"]) <= 61
    refused = http.post(NATIVE, json=native(), headers={**auth, **SSE})
    assert refused.status_code == 429 and refused.headers["content-type"] == "application/json"
    assert refused.json()["code"] == "Throttling.RateQuota"
    assert refused.json()["message"].startswith("Requests rate limit exceeded, please try again later.")
    assert http.get("/v1/models", headers=auth).status_code == 200  # computes nothing
    assert len(live.instruct.requests) == 2


def usage(answer: httpx.Response) -> dict[str, Any]:
    found: dict[str, Any] = answer.json()["usage"]
    return found


def test_tokens_a_minute_are_reserved_and_given_back(http: httpx.Client, live: Live) -> None:
    prompt = usage(http.post(NATIVE, json=native()))["input_tokens"]
    key_id, auth = limited(live, tpm=prompt + 100)
    body = native(max_tokens=101)
    never = http.post(NATIVE, json=body, headers=auth)
    assert never.status_code == 429 and never.json()["code"] == "Throttling.AllocationQuota"
    assert never.json()["message"].startswith(
        "Allocated quota exceeded, please increase your quota limit. The prompt and max_tokens make"
    )
    assert never.headers["x-should-retry"] == "false" and 1 <= int(never.headers["retry-after"]) <= 61
    answer = http.post(NATIVE, json=native(max_tokens=100), headers=auth)
    assert answer.status_code == 200, answer.text
    used = usage(answer)["total_tokens"]
    assert answer.headers["x-ratelimit-remaining-tokens"] == "0" and used < prompt + 100
    _ = entries(live, key_id, 2)
    too_many = http.post(CHAT, json=chat(max_tokens=100), headers=auth)
    assert too_many.status_code == 429 and too_many.json()["error"]["type"] == "insufficient_quota"
    assert f"{prompt + 100 - used} are left" in too_many.json()["error"]["message"]
    assert "x-should-retry" not in too_many.headers
    assert [entry.status for entry in entries(live, key_id, 3)] == ["refused", "ok", "refused"]


def test_a_request_without_a_length_fits_into_a_small_minute(http: httpx.Client, live: Live) -> None:
    prompt = usage(http.post(NATIVE, json=native()))["input_tokens"]
    _, auth = limited(live, tpm=prompt + 3)
    answer = http.post(NATIVE, json=native(), headers=auth)
    assert answer.json()["output"]["finish_reason"] == "length"
    assert usage(answer)["total_tokens"] == prompt + 3
    assert live.instruct.requests[-1].sampling.max_total_tokens == 3


def test_answers_at_once(http: httpx.Client, live: Live) -> None:
    key_id, auth = limited(live, concurrency=1)
    live.instruct.delay = 0.05
    live.instruct.say("and " * 100)
    with http.stream("POST", NATIVE, json=native(), headers={**auth, **SSE}) as running:
        assert running.status_code == 200
        for path, body, code in (
            (NATIVE, native(), "Throttling.Concurrency"),
            (CHAT, chat(), "limit_concurrency"),
        ):
            second = http.post(path, json=body, headers=auth)
            assert second.status_code == 429 and second.headers["retry-after"] == "1"
            assert code in second.text
    assert {entry.status for entry in entries(live, key_id, 3)} == {"refused", "cancelled"}
    live.instruct.delay = 0
    assert http.post(NATIVE, json=native(), headers=auth).status_code == 200


def test_the_free_quota_is_used_to_the_last_token_and_not_beyond(http: httpx.Client, live: Live) -> None:
    whole = usage(http.post(NATIVE, json=native()))
    prompt, total = whole["input_tokens"], whole["total_tokens"]
    key_id, auth = limited(live, free_tokens=total + prompt + 2)
    assert usage(http.post(NATIVE, json=native(), headers=auth))["total_tokens"] == total
    second = http.post(NATIVE, json=native(max_tokens=300), headers=auth)
    assert second.json()["output"]["finish_reason"] == "length"
    assert usage(second)["total_tokens"] == prompt + 2
    for path, body in ((NATIVE, native()), (CHAT, chat(stream=True))):
        third = http.post(path, json=body, headers={**auth, **SSE})
        assert third.status_code == 403 and "AllocationQuota.FreeTierOnly" in third.text
        assert "The free tier of the model has been exhausted." in third.text
    other = http.post(CHAT, json=chat(model="tiny-base", messages=None, prompt="x"), headers=auth)
    assert other.status_code != 403  # each model has a quota of its own
    rows = entries(live, key_id, 4)
    assert sum(row.free_tokens for row in rows) == total + prompt + 2 and not any(row.cost for row in rows)
    assert {row.model for row in rows} == {"tiny-instruct"}


def test_what_the_cache_held_costs_a_fifth(http: httpx.Client, live: Live) -> None:
    live.instruct.say("Hello there, friend.", cached=4)
    key_id, auth = limited(live, balance=amount("1"))
    answer = usage(http.post(CHAT, json=chat(), headers=auth))
    assert answer["prompt_tokens_details"] == {"cached_tokens": 4}
    read, written = answer["prompt_tokens"], answer["completion_tokens"]
    (row,) = entries(live, key_id)
    assert (row.cached_tokens, row.batch) == (4, False)
    assert row.cost == (read - 4) * 150_000 + 4 * 30_000 + written * 1_200_000


def test_the_balance_pays_for_what_is_not_free(http: httpx.Client, live: Live) -> None:
    prompt = usage(http.post(NATIVE, json=native()))["input_tokens"]
    key_id, auth = limited(live, balance=amount("0.0001"))  # 0.15 and 1.2 per million tokens
    answer = usage(http.post(NATIVE, json=native(), headers=auth))
    cost = answer["input_tokens"] * UNIT * 15 // 10**8 + answer["output_tokens"] * UNIT * 12 // 10**7
    assert [row.cost for row in entries(live, key_id)] == [cost]
    assert live.keys.find(key_id).balance == amount("0.0001") - cost
    while (left := live.keys.find(key_id).balance or 0) >= prompt * 150_000 + 1_200_000:
        before = len(entries(live, key_id, 0))
        assert http.post(CHAT, json=chat(stream=True), headers=auth).status_code == 200
        _ = entries(live, key_id, before + 1)
    assert left >= 0
    refused = http.post(NATIVE, json=native(), headers=auth)
    assert refused.status_code == 400 and refused.json()["code"] == "Arrearage"
    assert refused.json()["error_code"] == 10402
    live.keys.change(key_id, balance=0)
    early = http.post(CHAT, content=b"not even read", headers=auth)
    assert early.status_code == 400 and early.json()["error"]["code"] == "Arrearage"
    assert early.json()["error"]["error_code"] == 10402
    assert early.json()["error"]["message"].startswith("Access denied, please make sure your account")
    live.keys.change(key_id, top_up=UNIT)
    assert http.post(CHAT, json=chat(), headers=auth).status_code == 200


def test_the_order_of_the_checks(http: httpx.Client, live: Live) -> None:
    """Each request has the faults of all that follow: the first check speaks."""
    key_id, auth = limited(live, rpm=1, tpm=1, free_tokens=0, balance=0)
    long = "and " * 700
    live.instruct.refusal = RuntimeError("full")

    def ask(headers: dict[str, str] = auth, **body: Any) -> str:
        answer = http.post(NATIVE, json=body or None, headers=headers)
        return f"{answer.status_code} {answer.json()['code']}"

    assert ask({"Authorization": "Bearer no"}) == "401 InvalidApiKey"
    assert ask() == "400 Arrearage"
    live.keys.change(key_id, balance=None, free_tokens=None)
    huge = http.post(NATIVE, content=b"x" * 2**21, headers=auth)
    assert huge.status_code == 413
    assert ask() == "429 Throttling.RateQuota"
    live.keys.change(key_id, rpm=None)
    assert http.post(NATIVE, content=b"{", headers=auth).json()["code"] == "InvalidParameter"
    assert ask(model="none", parameters={"n": 9}) == "404 ModelNotFound"
    wrong = {"model": "tiny-instruct", "input": {"prompt": long}}
    assert "Range of n" in http.post(NATIVE, json={**wrong, "parameters": {"n": 9}}, headers=auth).text
    assert "Range of input length" in http.post(NATIVE, json=wrong, headers=auth).text
    assert ask(**native()) == "429 Throttling.AllocationQuota"
    live.keys.change(key_id, tpm=None)
    assert ask(**native()) == "503 ModelServingError"
    live.instruct.refusal = None
    assert http.post(NATIVE, json=native(), headers=auth).status_code == 200


@pytest.mark.parametrize("leaves", ["in the stream", "before the first token", "not streamed"])
def test_a_client_that_leaves_pays_for_what_it_was_told(live: Live, leaves: str) -> None:
    prompt = usage(httpx.post(live.url + NATIVE, json=native(), headers=live.auth))["input_tokens"]
    key_id, auth = limited(live, tpm=1000, free_tokens=1000, concurrency=1)
    live.instruct.delay = 0.05 if leaves == "in the stream" else 30
    live.instruct.say("and " * 100)
    headers = auth if leaves == "not streamed" else {**auth, **SSE}
    body, told = native(max_tokens=100, incremental_output=headers is not auth), 0
    try:
        with httpx.stream("POST", live.url + NATIVE, json=body, headers=headers, timeout=0.7) as answer:
            for line in answer.iter_lines():
                if leaves == "before the first token":
                    assert line == ":keep-alive"
                    break
                if line.startswith("data:"):
                    told = frames(line + "\n\n")[-1]["usage"]["total_tokens"]
                    if told > prompt + 5:
                        break
    except httpx.ReadTimeout:
        assert leaves == "not streamed"
    live.instruct.wait_for_abort()
    (row,) = entries(live, key_id)
    assert row.status == "cancelled"
    used = row.input_tokens + row.output_tokens
    assert (
        used
        == row.free_tokens
        == live.admission.ledger.free_used(key_id, live.admission.ledger.month()).get("tiny-instruct", 0)
    )
    if leaves == "in the stream":
        assert told <= used < prompt + 100  # something was under way to the client when it left
    else:
        assert used == 0
    live.instruct.delay = 0
    live.instruct.say("Hello")
    again = httpx.post(live.url + NATIVE, json=native(max_tokens=100), headers=auth)
    assert again.status_code == 200
    assert int(again.headers["x-ratelimit-remaining-tokens"]) == 1000 - used - prompt - 100


def test_an_event_that_never_reached_its_client_is_not_charged(live: Live, service: Service) -> None:
    """As when a client leaves in the moment in which the first token comes."""
    key_id, _ = limited(live, free_tokens=1000)
    gate = Gate(service, live.keys, live.admission, Settings())
    sampling = SamplingParams(max_tokens=50, seed=1)
    asked = ChatRequest("tiny-instruct", (Conversation((Message("user", "Hi"),)),), sampling, stream=True)

    async def late() -> int:
        """It leaves a silent stream while the first event is on its way."""
        answer = gate.answer(live.keys.find(key_id), asked, "late")
        first = asyncio.ensure_future(anext(answer))
        frames = _frames(first, answer, openai.ChatReply("late", "tiny-instruct", 0), None)
        assert await anext(frames) == KEEP_ALIVE
        reading = asyncio.ensure_future(anext(frames))
        while not first.done():
            await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        return 0

    async def ask(events: int) -> int:
        answer = gate.answer(live.keys.find(key_id), asked, f"after {events}")
        used = [(await anext(answer)).usage.total for _ in range(events)]
        with pytest.raises(ClientGone):
            await answer.athrow(ClientGone())
        return used[-2] if events > 1 else 0

    for number, leaving in enumerate((ask(1), ask(3), late()), 1):
        told = asyncio.run(leaving)
        row = entries(live, key_id, number)[-1]
        assert row.status == "cancelled"
        assert row.input_tokens + row.output_tokens == row.free_tokens == told
