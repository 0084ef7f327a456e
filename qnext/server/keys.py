"""API keys: made once, shown once, kept only as a hash; each with the limits that were set for it.

Called by `gate` (verify) and `cli` (create, set, show, list, revoke, first start). Invariant: the secret
itself is never stored; SHA-256 is enough for it because it is random, not a password. A revoked key is
refused from the next request on.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import (
    BigInteger,
    Column,
    Engine,
    Float,
    Integer,
    String,
    Table,
    bindparam,
    func,
    insert,
    select,
    update,
)

from .prices import MOST, shown
from .settings import LIMITS
from .store import METADATA

UNLIMITED = -1
KEYS = Table(
    "keys",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("last4", String(4), nullable=False),
    Column("created", Float, nullable=False),
    Column("revoked", Float),
    Column("rpm", Integer),
    Column("tpm", BigInteger),
    Column("concurrency", Integer),
    Column("free_tokens", BigInteger),
    Column("balance", BigInteger),
)
_SHOWN = tuple(column for column in KEYS.columns if column.name != "digest")
# Asked for every request: made once, it costs a third of one made anew.
_WORKING = select(*_SHOWN).where(KEYS.c.digest == bindparam("given"), KEYS.c.revoked.is_(None))


@dataclass(frozen=True)
class Key:
    """What may be shown of a key. Times are seconds since 1970; `revoked` is None while the key works.

    `rpm`, `tpm`, `concurrency` and `free_tokens` are what the settings call so: None leaves it to them,
    `UNLIMITED` is no limit. `balance` is prepaid money in the units of `prices`, None where nothing is paid.
    """

    id: int
    name: str
    last4: str
    created: float
    revoked: float | None = None
    rpm: int | None = None
    tpm: int | None = None
    concurrency: int | None = None
    free_tokens: int | None = None
    balance: int | None = None


class Keys:
    """The keys of one store. Safe from several threads and processes."""

    def __init__(self, store: Engine) -> None:
        self._store = store

    @property
    def store(self) -> Engine:
        """Where the keys are; the server keeps its other rows beside them."""
        return self._store

    def create(self, name: str = "default", **limits: int | None) -> tuple[Key, str]:
        """A new key with `limits`, and its secret `sk-` + 32 hex digits, which is not kept. Raises ValueError
        for a limit that is none."""
        secret = "sk-" + secrets.token_hex(16)
        row = {"name": name, "digest": _digest(secret), "last4": secret[-4:], "created": time.time()}
        row |= _sound(limits)
        with self._store.begin() as connection:
            result = connection.execute(insert(KEYS).values(row).returning(*_SHOWN))
            return Key(*result.one()), secret

    def first(self) -> str | None:
        """At the first start, when there has never been a key: makes one and returns its secret."""
        with self._store.connect() as connection:
            count = connection.execute(select(func.count()).select_from(KEYS)).scalar_one()
        return None if count else self.create("first")[1]

    def all(self) -> list[Key]:
        """Every key, oldest first, revoked ones included."""
        with self._store.connect() as connection:
            return [Key(*row) for row in connection.execute(select(*_SHOWN).order_by(KEYS.c.id))]

    def find(self, key_id: int) -> Key:
        """Raises ValueError when there is no such key."""
        with self._store.connect() as connection:
            row = connection.execute(select(*_SHOWN).where(KEYS.c.id == key_id)).one_or_none()
        if row is None:
            raise ValueError(f"key {key_id}: no key has this id; `qnext keys list` shows them")
        return Key(*row)

    def change(self, key_id: int, top_up: int = 0, **limits: int | None) -> Key:
        """Sets `limits` of a key, and adds `top_up` to its balance, in one step that no running request
        disturbs. They hold from the next request on. Raises ValueError for a key or a limit that is none."""
        values: dict[str, object] = {**_sound(limits)}
        if top_up:
            values["balance"] = func.coalesce(KEYS.c.balance, 0) + top_up
        if values:
            changed = update(KEYS).where(KEYS.c.id == key_id).values(values).returning(KEYS.c.balance)
            with self._store.begin() as connection:
                if (connection.execute(changed).scalar_one_or_none() or 0) > MOST:
                    raise ValueError(f"the balance would be more than {shown(MOST)}: add less")
        return self.find(key_id)

    def revoke(self, key_id: int) -> Key:
        """Ends a key. Raises ValueError when there is no such key or it has been revoked already."""
        change = update(KEYS).where(KEYS.c.id == key_id, KEYS.c.revoked.is_(None))
        with self._store.begin() as connection:
            row = connection.execute(change.values(revoked=time.time()).returning(*_SHOWN)).one_or_none()
        if row is None:
            raise ValueError(f"key {key_id}: no working key has this id; `qnext keys list` shows them")
        return Key(*row)

    def verify(self, secret: str) -> Key | None:
        """The working key with this secret, if any."""
        with self._store.connect() as connection:
            row = connection.execute(_WORKING, {"given": _digest(secret)}).one_or_none()
        return None if row is None else Key(*row)


def _sound(limits: Mapping[str, int | None]) -> dict[str, int | None]:
    """Raises ValueError for a limit of no known name, or out of its range."""
    for name, value in limits.items():
        if name not in (*LIMITS, "balance"):
            raise ValueError(f"{name}: a key has no such limit")
        least = 0 if name in ("free_tokens", "balance") else 1
        if value is None or (value == UNLIMITED and name in LIMITS):
            continue
        if not least <= value <= MOST:
            raise ValueError(f"{name} is {value}: give {least} or more")
    return dict(limits)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()
