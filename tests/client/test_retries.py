"""Retries: what is tried again, how often, and after how long."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
import requests
from dashscope import Generation

from qnext.client import call_with_retry, retryable, wait_seconds

from ..server.conftest import Live
from ..server.ways import HAS_CLIENT


def answer(status: int, **headers: str) -> Any:
    return SimpleNamespace(status_code=status, headers=headers)


def asked(*outcomes: Any) -> tuple[Callable[[], Any], list[int]]:
    """A call that has these outcomes, one after the other, and the list of calls made so far."""
    left: Iterator[Any] = iter(outcomes)
    calls: list[int] = []

    def call() -> Any:
        calls.append(len(calls))
        outcome = next(left)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return call, calls


def test_passing_failures_are_tried_again() -> None:
    waits: list[float] = []
    call, calls = asked(answer(500), answer(429, **{"Retry-After": "7"}), answer(200))
    assert call_with_retry(call, sleep=waits.append).status_code == 200
    assert len(calls) == 3 and 0.375 <= waits[0] <= 0.625 and waits[1] == 7


def test_the_last_failure_is_the_result() -> None:
    call, calls = asked(*[answer(503)] * 4)
    assert call_with_retry(call, sleep=lambda _: None).status_code == 503 and len(calls) == 3
    broken = requests.exceptions.ConnectionError("gone")
    call, calls = asked(broken, broken)
    with pytest.raises(requests.exceptions.ConnectionError):
        call_with_retry(call, attempts=2, sleep=lambda _: None)
    assert len(calls) == 2


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413])
def test_what_cannot_succeed_is_asked_once(status: int) -> None:
    call, calls = asked(answer(status))
    assert call_with_retry(call, sleep=pytest.fail).status_code == status and len(calls) == 1
    call, calls = asked(ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        call_with_retry(call, sleep=pytest.fail)


def test_a_wait_that_is_too_long_is_not_shortened() -> None:
    call, calls = asked(answer(429, **{"retry-after": "61"}))
    assert call_with_retry(call, sleep=pytest.fail).status_code == 429 and len(calls) == 1


def test_waits_grow() -> None:
    waits: list[float] = []
    call, _ = asked(*[answer(500)] * 5)
    call_with_retry(call, attempts=5, first_wait=1, sleep=waits.append)
    assert [round(wait) for wait in waits[:1]] == [1]
    for wait, middle in zip(waits, (1, 2, 4, 8), strict=True):
        assert 0.75 * middle <= wait <= 1.25 * middle


def test_what_servers_say_of_waiting() -> None:
    assert wait_seconds(answer(429, **{"Retry-After": "1.5"})) == 1.5
    in_a_minute = wait_seconds(answer(429, **{"Retry-After": formatdate(time.time() + 60, usegmt=True)}))
    assert in_a_minute is not None and 50 < in_a_minute <= 60
    assert wait_seconds(answer(429, **{"Retry-After": "-3"})) == 0
    for outcome in (answer(429), answer(429, **{"Retry-After": "soon"}), SimpleNamespace(), ValueError()):
        assert wait_seconds(outcome) is None


def test_errors_of_every_sdk() -> None:
    request = httpx.Request("POST", "http://x")
    response = httpx.Response(429, headers={"Retry-After": "3"}, request=request)
    full = openai.RateLimitError("slow down", response=response, body=None)
    assert retryable(full) and wait_seconds(full) == 3
    for broken in (
        openai.APIConnectionError(request=request),
        openai.APITimeoutError(request),
        httpx.ReadTimeout("late"),
        requests.exceptions.ReadTimeout("late"),
        ConnectionResetError(),
    ):
        assert retryable(broken)
    assert not retryable(KeyError("x"))


def test_errors_of_the_second_surface_of_dashscope() -> None:
    errors = pytest.importorskip("dashscope.v2.errors")
    full = errors.RateLimitError("slow down", status_code=429, headers={"retry-after": "2"})
    assert retryable(full) and wait_seconds(full) == 2
    assert retryable(errors.APITimeoutError("late"))
    assert not retryable(errors.PermissionDeniedError("unpaid", status_code=400))


def test_answers_that_raise_key_errors_for_what_they_lack() -> None:
    class Strict(dict[str, int]):
        def __getattr__(self, name: str) -> int:
            return self[name]

    assert retryable(Strict(status_code=503)) and wait_seconds(Strict(status_code=503)) is None
    assert not retryable(Strict(status_code=400))


def test_attempts_are_checked() -> None:
    with pytest.raises(ValueError, match="attempts is 0"):
        call_with_retry(lambda: None, attempts=0)


def test_the_servers_wait_reaches_the_loop(live: Live) -> None:
    """A full server says how long to wait, and the SDK hands it on."""
    live.instruct.refusal = RuntimeError("full")
    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        live.instruct.refusal = None

    found = call_with_retry(
        lambda: Generation.call(
            "tiny-instruct", prompt="Hi", api_key=live.key, base_address=live.url + "/api/v1"
        ),
        sleep=sleep,
    )
    assert found.output.text == "Hello there, friend."
    # The first generation of the SDK keeps the headers to itself.
    assert waits == [1.0] if HAS_CLIENT else 0.375 <= waits[0] <= 0.625
