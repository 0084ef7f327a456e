"""Stored responses: what a key was answered, and the conversation that led there, until it is deleted or old.

Called by `response_routes`, in threads. Invariant: a key finds its own responses alone; each holds its whole
conversation, so that deleting one, or its end of life, breaks no later one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Engine, Float, Integer, String, Table, Text, delete, insert, select

from .response_items import Item
from .store import METADATA

_RESPONSES = Table(
    "responses",
    METADATA,
    Column("id", String, primary_key=True),
    Column("key_id", Integer, nullable=False),
    Column("created", Float, nullable=False, index=True),
    Column("body", Text, nullable=False),
    Column("history", Text, nullable=False),
)
DAY = 86_400.0


@dataclass(frozen=True)
class StoredResponse:
    """A response as its client got it, and the items that came before its output."""

    body: dict[str, Any]
    items: list[Item]

    @property
    def conversation(self) -> list[Item]:
        """All items, those of the output included."""
        return [*self.items, *self.body["output"]]


class StoredResponses:
    """The responses of one store, each kept for `days`; `clock` gives seconds since 1970. Safe from several
    threads and processes."""

    def __init__(self, store: Engine, days: float, clock: Callable[[], float] = time.time) -> None:
        self._store, self._life, self._clock = store, days * DAY, clock

    def save(self, key_id: int, response: StoredResponse) -> None:
        """Keeps a response; those whose time has come go."""
        body, items = (json.dumps(each, ensure_ascii=False) for each in (response.body, response.items))
        now = self._clock()
        row = {"id": response.body["id"], "key_id": key_id, "created": now, "body": body, "history": items}
        with self._store.begin() as connection:
            connection.execute(delete(_RESPONSES).where(_RESPONSES.c.created <= now - self._life))
            connection.execute(insert(_RESPONSES).values(row))

    def find(self, key_id: int, name: str) -> StoredResponse | None:
        """The key's response of this id, if it is still kept."""
        wanted = select(_RESPONSES.c.body, _RESPONSES.c.history).where(*self._own(key_id, name))
        with self._store.connect() as connection:
            row = connection.execute(wanted).one_or_none()
        return None if row is None else StoredResponse(json.loads(row.body), json.loads(row.history))

    def delete(self, key_id: int, name: str) -> bool:
        """Whether there was such a response; it is gone now."""
        with self._store.begin() as connection:
            return connection.execute(delete(_RESPONSES).where(*self._own(key_id, name))).rowcount > 0

    def _own(self, key_id: int, name: str) -> tuple[Any, ...]:
        table = _RESPONSES.c
        return table.id == name, table.key_id == key_id, table.created > self._clock() - self._life
