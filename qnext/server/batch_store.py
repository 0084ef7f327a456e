"""The batches and the answers that their lines have so far: rows in the store.

Made by `app`, called by `batch_routes`, `task_routes` and `batch_job`. Invariants: a line of a batch has at
most one answer, whatever is killed and started again (its number is the row's key), and the counts of a
batch are those of its rows (one transaction changes both); an ended batch never changes.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, fields
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Engine,
    Float,
    ForeignKey,
    Integer,
    String,
    Table,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from .exchange import Usage
from .store import METADATA
from .stored_files import StoredFile, StoredFiles

_BATCHES = Table(
    "batches",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("key_id", Integer, nullable=False, index=True),
    Column("endpoint", String, nullable=False),
    Column("input_file_id", String(64), nullable=False),
    Column("completion_window", String, nullable=False),
    Column("details", JSON, nullable=False),
    Column("status", String(16), nullable=False, index=True),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
    Column("model", String, nullable=False, default=""),
    Column("errors", JSON, nullable=False, default=list),
    Column("output_file_id", String(64)),
    Column("error_file_id", String(64)),
    *(
        Column(name, Integer, nullable=False, default=0)
        for name in ("total", "completed", "failed", "input", "cached", "output", "reasoning")
    ),
    *(
        Column(f"{status}_at", Float)
        for status in (
            *("in_progress", "finalizing", "completed", "failed"),
            *("expired", "cancelling", "cancelled"),
        )
    ),
    sqlite_autoincrement=True,
)
_ANSWERS = Table(
    "batch_answers",
    METADATA,
    Column("batch", Integer, ForeignKey("batches.number"), primary_key=True),
    Column("line", Integer, primary_key=True),
    Column("failed", Boolean, nullable=False),
    Column("text", String, nullable=False),
)
UNFINISHED = ("validating", "in_progress", "finalizing", "cancelling")
ENDED = ("completed", "failed", "expired", "cancelled")
_OPEN = ("validating", "in_progress")  # what can still be cancelled


@dataclass(frozen=True)
class Batch:
    """`details` is the client's metadata, `errors` what is wrong with the input; `total`, `completed` and
    `failed` count lines, the four after them tokens; times are in seconds since 1970."""

    number: int
    id: str
    key_id: int
    endpoint: str
    input_file_id: str
    completion_window: str
    details: dict[str, str]
    status: str
    created: float
    expires: float
    model: str
    errors: list[dict[str, Any]]
    output_file_id: str | None
    error_file_id: str | None
    total: int
    completed: int
    failed: int
    input: int
    cached: int
    output: int
    reasoning: int
    in_progress_at: float | None
    finalizing_at: float | None
    completed_at: float | None
    failed_at: float | None
    expired_at: float | None
    cancelling_at: float | None
    cancelled_at: float | None

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    @property
    def ended_at(self) -> float | None:
        return getattr(self, f"{self.status}_at") if self.ended else None


_COLUMNS = [_BATCHES.c[field.name] for field in fields(Batch)]


@dataclass(frozen=True)
class Filters:
    """Which batches a list shows; what is None or empty does not matter. `name` is a part of `ds_name`."""

    name: str = ""
    statuses: Collection[str] = ()
    input_file_ids: Collection[str] = ()
    model: str = ""
    since: float | None = None
    until: float | None = None


class BatchStore:
    """Safe from several threads and processes."""

    def __init__(self, store: Engine, files: StoredFiles) -> None:
        self._store, self._files = store, files

    def create(
        self, file: StoredFile, endpoint: str, window: str, seconds: float, details: dict[str, str], most: int
    ) -> Batch | None:
        """A batch over a file's lines, which expires after `seconds`; None when the file's key has `most`
        unfinished ones."""
        now = time.time()
        row = {
            "id": f"batch_{secrets.token_hex(12)}",
            "key_id": file.key_id,
            "endpoint": endpoint,
            "input_file_id": file.id,
            "completion_window": window,
            "details": details,
            "status": "validating",
            "created": now,
            "expires": now + seconds,
        }
        mine = select(func.count()).where(_BATCHES.c.key_id == file.key_id, _BATCHES.c.status.in_(UNFINISHED))
        with self._store.begin() as connection:
            made = Batch(*connection.execute(insert(_BATCHES).values(row).returning(*_COLUMNS)).one())
            if connection.execute(mine).scalar_one() > most:
                connection.rollback()
                return None
        return made

    def find(self, key_id: int, batch_id: str) -> Batch | None:
        wanted = select(*_COLUMNS).where(_BATCHES.c.id == batch_id, _BATCHES.c.key_id == key_id)
        with self._store.connect() as connection:
            row = connection.execute(wanted).one_or_none()
        return None if row is None else Batch(*row)

    def listed(
        self, key_id: int, limit: int, filters: Filters, *, after: Batch | None = None, skip: int = 0
    ) -> tuple[list[Batch], int]:
        """At most `limit` batches of a key, the newest first, and how many there are from `after` on."""
        where = [_BATCHES.c.key_id == key_id]
        if after is not None:
            where.append(_BATCHES.c.number < after.number)
        if filters.name:
            where.append(_BATCHES.c.details["ds_name"].as_string().contains(filters.name, autoescape=True))
        if filters.statuses:
            where.append(_BATCHES.c.status.in_(filters.statuses))
        if filters.input_file_ids:
            where.append(_BATCHES.c.input_file_id.in_(filters.input_file_ids))
        if filters.model:
            where.append(_BATCHES.c.model == filters.model)
        if filters.since is not None:
            where.append(_BATCHES.c.created >= filters.since)
        if filters.until is not None:
            where.append(_BATCHES.c.created <= filters.until)
        page = select(*_COLUMNS).where(*where).order_by(_BATCHES.c.number.desc()).limit(limit).offset(skip)
        with self._store.connect() as connection:
            found = [Batch(*row) for row in connection.execute(page)]
            return found, connection.execute(select(func.count()).where(*where)).scalar_one()

    def unfinished(self) -> list[Batch]:
        """What there is to do, of all keys, the oldest first."""
        wanted = select(*_COLUMNS).where(_BATCHES.c.status.in_(UNFINISHED)).order_by(_BATCHES.c.number)
        with self._store.connect() as connection:
            return [Batch(*row) for row in connection.execute(wanted)]

    def unfinished_with(self, file_id: str) -> str | None:
        """The id of a batch that still reads a file."""
        wanted = select(_BATCHES.c.id).where(
            _BATCHES.c.input_file_id == file_id, _BATCHES.c.status.in_(UNFINISHED)
        )
        with self._store.connect() as connection:
            return connection.execute(wanted.limit(1)).scalar_one_or_none()

    def cancel(self, batch: Batch) -> Batch | None:
        """The batch, now "cancelling" (also when it was already); None when it is too late."""
        moved = self._move(batch, _OPEN, "cancelling")
        now = self.find(batch.key_id, batch.id)
        return now if now is not None and (moved or now.status == "cancelling") else None

    def accept(self, batch: Batch, model: str, total: int) -> bool:
        """The input is sound: `total` lines for `model`. False when the batch was cancelled meanwhile."""
        return self._move(batch, ("validating",), "in_progress", model=model, total=total)

    def fail(self, batch: Batch, errors: list[dict[str, Any]]) -> bool:
        """The input is not sound, or is no longer there: nothing is left of what was answered."""
        failed = self._move(batch, _OPEN, "failed", errors=errors)
        if failed:
            with self._store.begin() as connection:
                connection.execute(delete(_ANSWERS).where(_ANSWERS.c.batch == batch.number))
        return failed

    def finalize(self, batch: Batch) -> bool:
        """No more lines will be answered. False when the batch was cancelled meanwhile."""
        return self._move(batch, ("in_progress", "finalizing"), "finalizing")

    def answer(self, batch: Batch, line: int, text: str, usage: Usage | None) -> None:
        """Keep the answer to a line; `usage` is None for a line that failed. A second answer, or one that
        comes after the end, is dropped."""
        counts = usage or Usage()
        count = _BATCHES.c.failed if usage is None else _BATCHES.c.completed
        change = (
            update(_BATCHES)
            .where(_BATCHES.c.number == batch.number, _BATCHES.c.status.in_(("in_progress", "cancelling")))
            .values({count: count + 1})
            .values({_BATCHES.c[name]: _BATCHES.c[name] + value for name, value in vars(counts).items()})
        )
        row = {"batch": batch.number, "line": line, "failed": usage is None, "text": text}
        try:
            with self._store.begin() as connection:
                if connection.execute(change).rowcount:
                    connection.execute(insert(_ANSWERS).values(row))
        except IntegrityError:
            pass

    def answered(self, batch: Batch) -> set[int]:
        """The numbers of the lines that have an answer."""
        with self._store.connect() as connection:
            wanted = select(_ANSWERS.c.line).where(_ANSWERS.c.batch == batch.number)
            return set(connection.execute(wanted).scalars())

    def answers(self, batch: Batch, *, failed: bool) -> Iterator[tuple[int, str]]:
        """The answers with their lines' numbers, in that order, a few in memory at a time."""
        wanted = select(_ANSWERS.c.line, _ANSWERS.c.text).where(
            _ANSWERS.c.batch == batch.number, _ANSWERS.c.failed.is_(failed)
        )
        with self._store.connect() as connection:
            rows = connection.execution_options(yield_per=100).execute(wanted.order_by(_ANSWERS.c.line))
            yield from ((line, said) for line, said in rows)

    def end(
        self, batch: Batch, status: str, output: StoredFile | None, errors: StoredFile | None, failed: int
    ) -> None:
        """Ended, with the files that were written; `failed` more lines were never answered. The rows of the
        answers go, in the same transaction."""
        known = {"output_file_id": output and output.id, "error_file_id": errors and errors.id}
        change = update(_BATCHES).where(_BATCHES.c.number == batch.number, _BATCHES.c.status.in_(UNFINISHED))
        values = {
            "status": status,
            f"{status}_at": time.time(),
            "failed": _BATCHES.c.failed + failed,
            **known,
        }
        with self._store.begin() as connection:
            if not connection.execute(change.values(values)).rowcount:
                return
            for file in (output, errors):
                if file is not None:
                    self._files.record(connection, file)
            connection.execute(delete(_ANSWERS).where(_ANSWERS.c.batch == batch.number))

    def _move(self, batch: Batch, before: Collection[str], status: str, **values: Any) -> bool:
        change = update(_BATCHES).where(_BATCHES.c.number == batch.number, _BATCHES.c.status.in_(before))
        values |= {"status": status, f"{status}_at": time.time()}
        with self._store.begin() as connection:
            return connection.execute(change.values(values)).rowcount > 0
