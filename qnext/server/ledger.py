"""The ledger: what each key has used, what it may still use, and what is set aside for answers being written.

Called by `admission` (reserve, settle) and `cli` (the balance and use of a key). Invariants: a reservation
covers the most an answer can use, and settling takes no more than it; each is one transaction that holds the
key's row from its first statement on, so that several servers on one store agree; every request that reached
the engine, or was refused for want of tokens or money, leaves one row in `usage`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    Index,
    Integer,
    Row,
    String,
    Table,
    delete,
    func,
    insert,
    select,
    update,
)

from .errors import ApiError, free_tier_used, in_arrears, too_many_tokens
from .keys import KEYS
from .prices import Price, Tariff
from .store import METADATA

Status = Literal["ok", "cancelled", "failed", "refused"]

_USAGE = Table(
    "usage",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("time", Float, nullable=False),
    Column("key_id", Integer, nullable=False),
    Column("model", String, nullable=False),
    Column("request_id", String, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("free_tokens", BigInteger, nullable=False),
    Column("cost", BigInteger, nullable=False),
    Column("status", String, nullable=False),
    Column("cached_tokens", BigInteger),
    Column("batch", Boolean),
    Index("usage_of_a_key", "key_id", "time"),
)
_FREE_USED = Table(
    "free_tokens_used",
    METADATA,
    Column("key_id", Integer, primary_key=True),
    Column("model", String, primary_key=True),
    Column("month", String(7), primary_key=True),
    Column("tokens", BigInteger, nullable=False),
)
_RESERVED = Table(
    "reservations",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("server", String, nullable=False),
    Column("key_id", Integer, nullable=False, index=True),
    Column("model", String, nullable=False),
    Column("month", String(7), nullable=False),
    Column("free_tokens", BigInteger, nullable=False),
    Column("money", BigInteger, nullable=False),
)


@dataclass(frozen=True)
class Entry:
    """A row of `usage`. `time` is in seconds since 1970, `cost` in the units of `prices`; `cached_tokens` are
    those of the input that the cache held, `batch` says that it was a line of one; `free_tokens` are those of
    input and output that the free quota paid for."""

    time: float
    key_id: int
    model: str
    request_id: str
    input_tokens: int
    output_tokens: int
    status: Status
    cached_tokens: int = 0
    batch: bool = False
    free_tokens: int = 0
    cost: int = 0


@dataclass(frozen=True)
class Purse:
    """What a key has for one model: free tokens, and money at a price. The free tokens go first: what the
    cache held, the rest of the prompt, the answer."""

    free: int
    money: int
    price: Price

    def answer(self, prompt: int) -> int | None:
        """The tokens that an answer to `prompt` tokens may have; None for as many as one likes, negative when
        the prompt itself is too much."""
        paid = max(prompt - self.free, 0)
        money = self.money - self.price.cost(paid, 0)
        if money < 0:
            return -1
        if not self.price.output and self.money:
            return None
        return max(self.free - prompt, 0) + (money // self.price.output if self.price.output else 0)

    def split(self, prompt: int, answer: int, cached: int = 0) -> tuple[int, int]:
        """Free tokens and money that so many tokens take; `cached` are those of the prompt that the cache
        held."""
        free = min(prompt + answer, self.free)
        paid_prompt, paid_cached = max(prompt - free, 0), max(cached - free, 0)
        return free, self.price.cost(paid_prompt, prompt + answer - free - paid_prompt, paid_cached)


class Ledger:
    """The ledger in one store, as one `server` keeps it. Every method is one transaction and blocks; safe
    from several threads and processes. `clock` gives seconds since 1970; months are those of UTC."""

    def __init__(
        self, store: Engine, server: str, tariff: Tariff, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._server = server
        self._tariff = tariff
        self._clock = clock

    def reserve(
        self,
        key_id: int,
        model: str,
        prompt: int,
        answer: int,
        *,
        free_limit: int,
        least: int = 1,
        batch: bool = False,
    ) -> tuple[int, int]:
        """Sets aside what a prompt and at most `answer` tokens cost; returns the reservation's number and the
        tokens that the answer may have, fewer than wished when no more are left. Raises ApiError when not
        even `least` are."""
        month = self.month()
        with self._store.begin() as connection:
            balance = _hold(connection, key_id)
            used = _free_used(connection, key_id, model, month)
            mine = _RESERVED.c.key_id == key_id
            free_mine = mine & (_RESERVED.c.model == model) & (_RESERVED.c.month == month)
            free_reserved = _sum(connection, _RESERVED.c.free_tokens, free_mine)
            money_reserved = _sum(connection, _RESERVED.c.money, mine)
            price = self._tariff.price(model, batch=batch)
            settled = Purse(max(free_limit - used, 0), max(balance or 0, 0), price)
            purse = Purse(max(settled.free - free_reserved, 0), max(settled.money - money_reserved, 0), price)
            room = purse.answer(prompt)
            granted = answer if room is None else min(answer, room)
            if granted < least:
                raise _refusal(settled, prompt, least, model, balance)
            free, money = purse.split(prompt, granted)
            row = {
                "server": self._server,
                "key_id": key_id,
                "model": model,
                "month": month,
                "free_tokens": free,
                "money": money,
            }
            made = connection.execute(insert(_RESERVED).values(row).returning(_RESERVED.c.id))
            return made.scalar_one(), granted

    def settle(self, reservation: int, entry: Entry) -> Entry:
        """Ends a reservation: takes what `entry` says was used, frees the rest, and writes the entry. Returns
        it with what was taken. A reservation that is gone (another server took this one for dead) takes
        nothing."""
        with self._store.begin() as connection:
            _hold(connection, entry.key_id)
            wanted = delete(_RESERVED).where(_RESERVED.c.id == reservation).returning(*_RESERVED.columns)
            row = connection.execute(wanted).one_or_none()
            if row is not None:
                entry = self._take(connection, row, entry)
            _write(connection, entry)
        return entry

    def note(self, entry: Entry) -> None:
        """Writes the entry of a request that nothing was reserved for."""
        with self._store.begin() as connection:
            _write(connection, entry)

    def release(self, server: str) -> int:
        """Frees all that a server which is no more had set aside; returns how many reservations it was."""
        with self._store.begin() as connection:
            return connection.execute(delete(_RESERVED).where(_RESERVED.c.server == server)).rowcount

    def servers(self) -> set[str]:
        """The servers that hold reservations."""
        with self._store.connect() as connection:
            return set(connection.execute(select(_RESERVED.c.server).distinct()).scalars())

    def free_used(self, key_id: int, month: str) -> dict[str, int]:
        """Free tokens that a key has used in a month, by model."""
        wanted = select(_FREE_USED.c.model, _FREE_USED.c.tokens)
        wanted = wanted.where(_FREE_USED.c.key_id == key_id, _FREE_USED.c.month == month)
        with self._store.connect() as connection:
            return {
                model: tokens for model, tokens in connection.execute(wanted.order_by(_FREE_USED.c.model))
            }

    def entries(self, key_id: int) -> list[Entry]:
        """All rows of a key, oldest first."""
        columns = [_USAGE.c[name] for name in Entry.__dataclass_fields__]
        wanted = select(*columns).where(_USAGE.c.key_id == key_id).order_by(_USAGE.c.id)
        with self._store.connect() as connection:
            return [Entry(*row) for row in connection.execute(wanted)]

    def totals(self, key_id: int) -> dict[str, tuple[int, int, int, int]]:
        """Requests, tokens in, tokens out and cost of a key since ever, by model."""
        sums = (func.sum(_USAGE.c.input_tokens), func.sum(_USAGE.c.output_tokens), func.sum(_USAGE.c.cost))
        wanted = select(_USAGE.c.model, func.count(), *sums).where(_USAGE.c.key_id == key_id)
        wanted = wanted.group_by(_USAGE.c.model).order_by(_USAGE.c.model)
        with self._store.connect() as connection:
            return {row[0]: (row[1], row[2], row[3], row[4]) for row in connection.execute(wanted)}

    def month(self) -> str:
        """The month that is now, as in 2026-01."""
        return time.strftime("%Y-%m", time.gmtime(self._clock()))

    def _take(self, connection: Connection, row: Row[tuple[object, ...]], entry: Entry) -> Entry:
        price = self._tariff.price(row.model, batch=entry.batch)
        purse = Purse(row.free_tokens, row.money, price)
        free, cost = purse.split(entry.input_tokens, entry.output_tokens, entry.cached_tokens)
        assert cost <= row.money, f"{entry.request_id} used more than was reserved for it"
        if free:
            _add_free(connection, row.key_id, row.model, row.month, free)
        if cost:
            taken = update(KEYS).where(KEYS.c.id == row.key_id).values(balance=KEYS.c.balance - cost)
            connection.execute(taken)
        return Entry(**{**vars(entry), "free_tokens": free, "cost": cost})


def _hold(connection: Connection, key_id: int) -> int | None:
    """The balance of a key, whose row nobody else changes until the transaction ends: to write comes first,
    since a transaction that begins by reading would act on what another has changed meanwhile."""
    held = update(KEYS).where(KEYS.c.id == key_id).values(id=KEYS.c.id).returning(KEYS.c.balance)
    balance: int | None = connection.execute(held).scalar_one()
    return balance


def _free_used(connection: Connection, key_id: int, model: str, month: str) -> int:
    chosen = (_FREE_USED.c.key_id == key_id, _FREE_USED.c.model == model, _FREE_USED.c.month == month)
    return connection.execute(select(_FREE_USED.c.tokens).where(*chosen)).scalar_one_or_none() or 0


def _add_free(connection: Connection, key_id: int, model: str, month: str, tokens: int) -> None:
    chosen = (_FREE_USED.c.key_id == key_id, _FREE_USED.c.model == model, _FREE_USED.c.month == month)
    added = update(_FREE_USED).where(*chosen).values(tokens=_FREE_USED.c.tokens + tokens)
    if not connection.execute(added).rowcount:
        row = {"key_id": key_id, "model": model, "month": month, "tokens": tokens}
        connection.execute(insert(_FREE_USED).values(row))


def _sum(connection: Connection, column: Column[int], chosen: object) -> int:
    wanted = select(func.coalesce(func.sum(column), 0)).where(chosen)  # type: ignore[arg-type]
    return int(connection.execute(wanted).scalar_one())


def _refusal(settled: Purse, prompt: int, least: int, model: str, balance: int | None) -> ApiError:
    """Why nothing is granted: others hold what is left, or nothing is."""
    room = settled.answer(prompt)
    if room is None or room >= least:
        return too_many_tokens("What is left of it is set aside for answers that are being written.", 1)
    return free_tier_used(model) if balance is None else in_arrears()


def _write(connection: Connection, entry: Entry) -> None:
    connection.execute(insert(_USAGE).values(vars(entry)))
