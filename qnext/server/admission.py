"""Admission: what a key's limits, free quota and balance let a request do, and the account of what it did.

Made by `cli` and tests, used by `gate` alone, so that every endpoint that computes tokens is admitted alike.
Invariants: a ticket that has taken anything is settled exactly once, however its request ends; what is
settled is what the client was told; a request of a key without limits waits for no database.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy import Engine

from .errors import in_arrears
from .exchange import Demand, Usage
from .keys import UNLIMITED, Key
from .ledger import Entry, Ledger, Status
from .limits import Limits
from .presence import Presence
from .settings import Settings

T = TypeVar("T")
_LOG = logging.getLogger("qnext.server")


@dataclass(frozen=True)
class Bounds:
    """The limits that hold for one key: its own, else the server's. None is no limit; a key with a balance
    and no word about free tokens has none."""

    rpm: int | None
    tpm: int | None
    concurrency: int | None
    free_tokens: int | None

    @classmethod
    def of(cls, key: Key, settings: Settings) -> Bounds:
        def limit(name: str) -> int | None:
            own: int | None = getattr(key, name)
            return settings.limit(name) if own is None else None if own == UNLIMITED else own

        free = limit("free_tokens")
        if free is None and key.free_tokens is None and key.balance is not None:
            free = 0
        return cls(limit("rpm"), limit("tpm"), limit("concurrency"), free)


class Admission:
    """The limits and the ledger of one server on one store. Reservations of servers that have died are freed
    when it is made. `clock` gives seconds since 1970. Raises ValueError for a storage that is none."""

    def __init__(self, store: Engine, settings: Settings, clock: Callable[[], float] = time.time) -> None:
        self.limits = Limits(settings.limits_storage, clock)
        self._presence = Presence(settings.home)
        self.ledger = Ledger(store, self._presence.name, settings.tariff, clock)
        for server in self.ledger.servers():
            if not self._presence.lives(server):
                count = self.ledger.release(server)
                _LOG.warning("freed %d reservations of a server that was killed", count)
        self.clock = clock
        self._settings = settings
        self._writer = ThreadPoolExecutor(1, "qnext-ledger")

    async def request(self, key: Key) -> dict[str, str]:
        """Counts a request before its body is read; returns headers that tell what is left. Raises ApiError
        for an account that can pay for nothing, and for one request too many in a minute."""
        bounds = self.bounds(key)
        if bounds.free_tokens == 0 and key.balance is not None and key.balance <= 0:
            raise in_arrears()
        if bounds.rpm is None:
            return {}
        left = await self.limits.take_request(key.id, bounds.rpm)
        return _headers("requests", bounds.rpm, left)

    def bounds(self, key: Key) -> Bounds:
        return Bounds.of(key, self._settings)

    def ticket(
        self, key: Key, request_id: str, headers: dict[str, str] | None = None, *, batch: bool = False
    ) -> Ticket:
        """`headers` are given what is left of the limits; `batch` says that it is for a line of one."""
        return Ticket(self, key, request_id, {} if headers is None else headers, batch)

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Runs work on the ledger's own thread, one after the other; when it has ended, here and now."""
        try:
            return self._writer.submit(work)
        except RuntimeError:
            done: Future[T] = Future()
            done.set_result(work())
            return done

    def close(self) -> None:
        """Returns when all that was settled is written."""
        self._writer.shutdown()
        self._presence.close()


class Ticket:
    """One request's way through the limits: `take` before the engine works, `settle` at the end, once."""

    def __init__(
        self, admission: Admission, key: Key, request_id: str, headers: dict[str, str], batch: bool
    ) -> None:
        self._headers, self._batch = headers, batch
        self._admission = admission
        self._key = key
        self._request_id = request_id
        self._model: str | None = None
        self._minute: tuple[str, int] | None = None
        self._reserving: Future[tuple[int, int]] | None = None
        self._entered = False

    async def take(self, demand: Demand) -> tuple[int, ...]:
        """Reserves what `demand` may use at most; returns how many tokens each answer may have, at most as
        many as it wished: fewer where the quota or the balance ends, or where the request named no length and
        the minute's limit is smaller. Raises ApiError when nothing can be had now."""
        admission, key_id, bounds = self._admission, self._key.id, self._admission.bounds(self._key)
        self._model, outputs = demand.model, demand.outputs
        if bounds.tpm is not None:
            if not demand.fixed:
                outputs = _shared(outputs, bounds.tpm - demand.prompt)
            tokens = demand.prompt + sum(outputs)
            minute, left = await admission.limits.take_tokens(key_id, tokens, bounds.tpm)
            self._minute = minute, tokens
            self._headers.update(_headers("tokens", bounds.tpm, left))
        if bounds.free_tokens is not None:
            free, model = bounds.free_tokens, demand.model
            prompt, answer, least = demand.prompt, sum(outputs), len(outputs)
            reserve, batch = admission.ledger.reserve, self._batch
            self._reserving = admission.submit(
                lambda: reserve(key_id, model, prompt, answer, free_limit=free, least=least, batch=batch)
            )
            _, granted = await asyncio.wrap_future(self._reserving)
            outputs = _shared(outputs, granted)
        if bounds.concurrency is not None:
            admission.limits.enter(key_id, bounds.concurrency)
            self._entered = True
        return outputs

    def settle(self, usage: Usage, status: Status) -> None:
        """Gives back what was not used and writes down what was. Returns at once; the ledger's own thread
        writes."""
        if self._model is None:
            return
        if self._entered:
            self._admission.limits.leave(self._key.id)
        if self._minute is not None:
            minute, tokens = self._minute
            self._admission.limits.return_tokens(minute, tokens - usage.total)
        entry = Entry(
            self._admission.clock(),
            self._key.id,
            self._model,
            self._request_id,
            usage.input,
            usage.output,
            status,
            usage.cached,
            self._batch,
        )
        self._admission.submit(lambda: self._write(entry))

    def _write(self, entry: Entry) -> None:
        ledger, made = self._admission.ledger, self._reserving
        try:
            if made is None or made.cancelled() or made.exception() is not None:
                ledger.note(entry)
            else:
                ledger.settle(made.result()[0], entry)
        except Exception:
            _LOG.exception("the use of request %s could not be written", entry.request_id)


def _shared(outputs: Sequence[int], room: int) -> tuple[int, ...]:
    """Answers' lengths that sum up to `room` at most, at least 1 each."""
    if sum(outputs) <= room:
        return tuple(outputs)
    return tuple(max(min(each, room // len(outputs)), 1) for each in outputs)


def _headers(what: str, limit: int, left: int) -> dict[str, str]:
    return {
        f"X-RateLimit-Limit-{what.title()}": str(limit),
        f"X-RateLimit-Remaining-{what.title()}": str(left),
    }
