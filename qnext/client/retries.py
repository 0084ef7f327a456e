"""Retries: which answers are worth another try, how long to wait, and the loop that does so.

Called by programs and by `regions`. Invariant: bounded in number and in time; a server that says when to come
back is never asked sooner, and what cannot succeed is not asked twice.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

T = TypeVar("T")
RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504})
# Of httpx, and of openai and dashscope.Client, told by name because none of them need be installed; those of
# requests, below dashscope's 1.x surface, are OSErrors.
_BROKEN = frozenset({"TransportError", "APIConnectionError"})


def call_with_retry(
    call: Callable[[], T],
    *,
    attempts: int = 3,
    first_wait: float = 0.5,
    longest_wait: float = 60.0,
    sleep: Callable[[float], object] = time.sleep,
) -> T:
    """What `call()` returns or raises, once it is no passing failure or `attempts` calls were made.

    Works with SDKs that return errors (`dashscope` 1.x surface) and with those that raise them (`openai`,
    `dashscope.Client`). Waits are in seconds: what `Retry-After` says, else `first_wait`, doubled each time,
    with jitter; when the server wants a longer wait than `longest_wait`, its refusal is the result. Raises
    ValueError for fewer attempts than 1.
    """
    if attempts < 1:
        raise ValueError(f"attempts is {attempts}: give 1 or more")
    for attempt in range(attempts):
        last = attempt + 1 == attempts
        try:
            answer = call()
        except Exception as error:
            wait = _next_wait(error, attempt, first_wait)
            if last or not retryable(error) or wait > longest_wait:
                raise
        else:
            wait = _next_wait(answer, attempt, first_wait)
            if last or not retryable(answer) or wait > longest_wait:
                return answer
        sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def retryable(outcome: Any) -> bool:
    """Whether an answer or exception is a failure that may pass: a status such as 429 or 503, or a
    connection that broke."""
    status = _field(outcome, "status_code")
    if status is not None:
        return int(status) in RETRIED
    return isinstance(outcome, OSError) or any(kind.__name__ in _BROKEN for kind in type(outcome).__mro__)


def wait_seconds(outcome: Any) -> float | None:
    """What `Retry-After` asks for, as seconds or as a date; None when nothing readable is said."""
    said = _headers(outcome).get("retry-after")
    if said is None:
        return None
    try:
        return max(float(said), 0.0)
    except ValueError:
        pass
    try:
        return max(parsedate_to_datetime(said).timestamp() - time.time(), 0.0)
    except ValueError:
        return None


def _headers(outcome: Any) -> dict[str, str]:
    """The headers of an answer or an exception, names in small letters."""
    found = _field(outcome, "headers") or _field(_field(outcome, "response"), "headers")
    return {str(name).lower(): value for name, value in found.items()} if isinstance(found, Mapping) else {}


def _field(outcome: Any, name: str) -> Any:
    """None for what is not there; answers of `dashscope` raise KeyError then, in some versions."""
    try:
        return getattr(outcome, name, None)
    except KeyError:
        return None


def _next_wait(outcome: Any, attempt: int, first_wait: float) -> float:
    said = wait_seconds(outcome)
    return first_wait * 2**attempt * random.uniform(0.75, 1.25) if said is None else said
