"""API keys: made once, shown once, kept only as a hash.

Called by `app` (verify) and `cli` (create, list, revoke, first start). Invariant: the secret itself is never
stored; SHA-256 is enough for it because it is random, not a password. A revoked key is refused from the next
request on.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass

from sqlalchemy import Column, Engine, Float, Integer, String, Table, func, insert, select, update

from .store import METADATA

_KEYS = Table(
    "keys",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("last4", String(4), nullable=False),
    Column("created", Float, nullable=False),
    Column("revoked", Float),
)
_SHOWN = (_KEYS.c.id, _KEYS.c.name, _KEYS.c.last4, _KEYS.c.created, _KEYS.c.revoked)


@dataclass(frozen=True)
class Key:
    """What may be shown of a key. Times are seconds since 1970; `revoked` is None while the key works."""

    id: int
    name: str
    last4: str
    created: float
    revoked: float | None = None


class Keys:
    """The keys of one store. Safe from several threads and processes."""

    def __init__(self, store: Engine) -> None:
        self._store = store

    def create(self, name: str = "default") -> tuple[Key, str]:
        """A new key and its secret `sk-` + 32 hex digits, which is not kept."""
        secret = "sk-" + secrets.token_hex(16)
        row = {"name": name, "digest": _digest(secret), "last4": secret[-4:], "created": time.time()}
        with self._store.begin() as connection:
            result = connection.execute(insert(_KEYS).values(row).returning(*_SHOWN))
            return Key(*result.one()), secret

    def first(self) -> str | None:
        """At the first start, when there has never been a key: makes one and returns its secret."""
        with self._store.connect() as connection:
            count = connection.execute(select(func.count()).select_from(_KEYS)).scalar_one()
        return None if count else self.create("first")[1]

    def all(self) -> list[Key]:
        """Every key, oldest first, revoked ones included."""
        with self._store.connect() as connection:
            return [Key(*row) for row in connection.execute(select(*_SHOWN).order_by(_KEYS.c.id))]

    def revoke(self, key_id: int) -> Key:
        """Ends a key. Raises ValueError when there is no such key or it has been revoked already."""
        change = update(_KEYS).where(_KEYS.c.id == key_id, _KEYS.c.revoked.is_(None))
        with self._store.begin() as connection:
            row = connection.execute(change.values(revoked=time.time()).returning(*_SHOWN)).one_or_none()
        if row is None:
            raise ValueError(f"key {key_id}: no working key has this id; `qnext keys list` shows them")
        return Key(*row)

    def verify(self, secret: str) -> Key | None:
        """The working key with this secret, if any."""
        wanted = select(*_SHOWN).where(_KEYS.c.digest == _digest(secret), _KEYS.c.revoked.is_(None))
        with self._store.connect() as connection:
            row = connection.execute(wanted).one_or_none()
        return None if row is None else Key(*row)


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()
