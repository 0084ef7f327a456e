"""The answer to one line of a batch, as the output or the error file tells it.

Called by `batch_job`. Invariants: a line goes the way of a live request, after all of those that wait; what
passes by itself (a full engine, a rate limit) is waited for, so that only what is wrong with a line fails it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

from . import openai, openai_completions
from .batch_lines import TEST_ENDPOINT, TEST_MODEL, Line
from .errors import ApiError, bad_key, compat_body, internal
from .exchange import Answer, Choice, Usage
from .gate import COMPAT_BASES, Gate, gather
from .keys import Keys
from .sse import dump

PRIORITY = 2**30  # of requests that wait, the lower number goes first; live ones have 0
_PASSING = {"capacity", "model"}  # a model that was there when the batch was checked may come back
_TRIES = 3  # of what may be the server's own fault
_LONGEST_WAIT = 30.0
_TEST_TEXT = "This is a test result."
_LOG = logging.getLogger("qnext.server")


@dataclass(frozen=True)
class LineAnswer:
    """`text` is a line of JSON; `usage` is None when the line failed."""

    text: str
    usage: Usage | None


class Answerer:
    """Answers lines of all batches, so many at once as the settings say."""

    def __init__(self, gate: Gate, keys: Keys) -> None:
        self._gate, self._keys = gate, keys
        self._slots = asyncio.Semaphore(gate.settings.batch_concurrency)

    async def answer(self, key_id: int, endpoint: str, line: Line) -> LineAnswer:
        """Takes as long as it takes: who has no more time cancels it."""
        for tries in count(1):
            name = str(uuid.uuid4())
            try:
                async with self._slots:
                    body, usage = await self._ask(key_id, endpoint, line, name)
                return LineAnswer(_written(line, name, 200, body, None), usage)
            except ApiError as error:
                refusal = error
            except Exception:
                _LOG.exception("a line of a batch failed")
                refusal = internal()
            wait = _wait(refusal, tries)
            if wait is None:
                break
            await asyncio.sleep(wait)
        body = compat_body(refusal, name)
        told = {"code": body["error"]["code"], "message": body["error"]["message"]}
        return LineAnswer(_written(line, name, refusal.status, body, told), None)

    async def _ask(
        self, key_id: int, endpoint: str, line: Line, request_id: str
    ) -> tuple[dict[str, Any], Usage]:
        key = await asyncio.to_thread(self._keys.find, key_id)
        if key.revoked is not None:
            raise bad_key(COMPAT_BASES[0])
        created = int(time.time())
        if endpoint == TEST_ENDPOINT:
            choice = Choice(content=_TEST_TEXT, finish="stop")
            said = Answer({0: choice}, Usage(), 1)
            return openai.ChatReply(request_id, TEST_MODEL, created).body(said), said.usage
        # No line can be streamed, so that what may only be streamed elsewhere is whole here.
        rules = replace(self._gate.service.rules(line.body["model"]), thinking_non_stream=True)
        parse = openai.parse if endpoint == "/v1/chat/completions" else openai_completions.parse
        body = {name: value for name, value in line.body.items() if name not in ("stream", "stream_options")}
        asked, reply = parse(body, rules, request_id=request_id, created=created)
        events = self._gate.answer(key, replace(asked, priority=PRIORITY), request_id, batch=True)
        answer = await gather(events)
        return reply.body(answer), answer.usage


def unanswered(line: Line, status: str) -> str:
    """What the error file says of a line that an expired or cancelled batch has not come to."""
    words = {
        "expired": "This request could not be executed before the completion window expired.",
        "cancelled": "This request was not executed: the batch was cancelled.",
    }
    told = {"code": f"batch_{status}", "message": words[status]}
    return _line(line, None, told)


def _wait(error: ApiError, tries: int) -> float | None:
    """How long until the next try, in seconds; None when there is none."""
    if not error.retry:
        return None
    if error.status != 429 and error.kind not in _PASSING:
        if error.status < 500 and error.kind != "timeout":
            return None
        if tries >= _TRIES:
            return None
    backoff: float = min(0.25 * 2 ** min(tries, 10), _LONGEST_WAIT)
    return max(backoff, error.retry_after or 0) * random.uniform(1, 1.25)


def _written(
    line: Line, request_id: str, status: int, body: dict[str, Any], error: dict[str, Any] | None
) -> str:
    return _line(line, {"status_code": status, "request_id": request_id, "body": body}, error)


def _line(line: Line, response: dict[str, Any] | None, error: dict[str, Any] | None) -> str:
    name = f"batch_req_{uuid.uuid4().hex}"
    return dump({"id": name, "custom_id": line.custom_id, "response": response, "error": error}).decode()
