"""The stored files: what clients upload and what batches write, each a row in the store and a file on disk.

Made by `app`, called by `file_routes` and the batches. Invariants: a file that has a row is whole, because it
lies under a temporary name until all of it is on disk and its row comes last; nobody finds another key's
files.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path

from sqlalchemy import Column, Connection, Engine, Float, Integer, String, Table, delete, func, insert, select

from .store import METADATA

_FILES = Table(
    "files",
    METADATA,
    Column("number", Integer, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("key_id", Integer, nullable=False, index=True),
    Column("purpose", String(32), nullable=False),
    Column("filename", String(255), nullable=False),
    Column("description", String, nullable=False),
    Column("size", Integer, nullable=False),
    Column("md5", String(32), nullable=False),
    Column("created", Float, nullable=False),
    sqlite_autoincrement=True,
)
OUTPUT = "batch_output"
_ASIDE = ".part"
_PREFIXES = {"batch": "file-batch-", "file-extract": "file-fe-"}


@dataclass(frozen=True)
class StoredFile:
    """`number` grows with every file, `size` is in bytes, `created` in seconds since 1970."""

    id: str
    key_id: int
    purpose: str
    filename: str
    description: str
    size: int
    md5: str
    created: float
    number: int = 0


_COLUMNS = [_FILES.c[field.name] for field in fields(StoredFile)]


class NoRoom(Exception):
    """The key's files would take more bytes together than they may."""


class StoredFiles:
    """The files of one store, in folder `folder`, which is made when absent. Safe from several threads and
    processes. A key may upload `max_bytes` in all; what batches write is not counted."""

    def __init__(self, store: Engine, folder: Path, max_bytes: int) -> None:
        self._store, self._folder, self._max_bytes = store, folder, max_bytes

    def save(
        self, key_id: int, chunks: Iterable[bytes], *, filename: str, purpose: str, description: str = ""
    ) -> StoredFile:
        """A new file. Raises NoRoom, and OSError when the disk has none."""
        with (
            self.written(key_id, chunks, filename=filename, purpose=purpose, description=description) as file,
            self._store.begin() as connection,
        ):
            number = self.record(connection, file)
            total = select(func.sum(_FILES.c.size)).where(
                _FILES.c.key_id == key_id, _FILES.c.purpose != OUTPUT
            )
            if connection.execute(total).scalar_one() > self._max_bytes:
                raise NoRoom
        return StoredFile(**{**vars(file), "number": number})

    @contextmanager
    def written(
        self,
        key_id: int,
        chunks: Iterable[bytes],
        *,
        filename: str,
        purpose: str,
        description: str = "",
        file_id: str = "",
    ) -> Iterator[StoredFile]:
        """A whole file on disk, for the caller to `record`; it is removed when the caller raises. Raises
        OSError."""
        file_id = file_id or _PREFIXES.get(purpose, "file-") + secrets.token_hex(12)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self._folder, prefix=f"{file_id}.", suffix=_ASIDE)
        aside, size, md5 = Path(name), 0, hashlib.md5(usedforsecurity=False)
        try:
            with open(handle, "wb") as file:
                fcntl.flock(
                    file, fcntl.LOCK_EX
                )  # held until the row is there: `sweep` takes what nobody holds
                for chunk in chunks:
                    file.write(chunk)
                    md5.update(chunk)
                    size += len(chunk)
                file.flush()
                os.fsync(file.fileno())
                aside = aside.rename(self._folder / file_id)
                self._flush_names()
                yield StoredFile(
                    file_id, key_id, purpose, filename, description, size, md5.hexdigest(), time.time()
                )
        except BaseException:
            aside.unlink(missing_ok=True)
            raise

    def record(self, connection: Connection, file: StoredFile) -> int:
        """Make the row of a file that was `written`; returns its number."""
        row = {name: value for name, value in vars(file).items() if name != "number"}
        number: int = connection.execute(insert(_FILES).values(row).returning(_FILES.c.number)).scalar_one()
        return number

    def find(self, key_id: int, file_id: str) -> StoredFile | None:
        wanted = select(*_COLUMNS).where(_FILES.c.id == file_id, _FILES.c.key_id == key_id)
        with self._store.connect() as connection:
            row = connection.execute(wanted).one_or_none()
        return None if row is None else StoredFile(*row)

    def listed(
        self,
        key_id: int,
        limit: int,
        *,
        purpose: str | None = None,
        after: StoredFile | None = None,
        oldest_first: bool = False,
        skip: int = 0,
    ) -> list[StoredFile]:
        """At most `limit` files of a key, the newest first unless told otherwise."""
        number = _FILES.c.number
        wanted = select(*_COLUMNS).where(_FILES.c.key_id == key_id)
        if purpose is not None:
            wanted = wanted.where(_FILES.c.purpose == purpose)
        if after is not None:
            wanted = wanted.where(number > after.number if oldest_first else number < after.number)
        wanted = wanted.order_by(number if oldest_first else number.desc()).limit(limit).offset(skip)
        with self._store.connect() as connection:
            return [StoredFile(*row) for row in connection.execute(wanted)]

    def count(self, key_id: int) -> int:
        wanted = select(func.count()).select_from(_FILES).where(_FILES.c.key_id == key_id)
        with self._store.connect() as connection:
            return connection.execute(wanted).scalar_one()

    def delete(self, file: StoredFile) -> bool:
        """Whether the file was still there."""
        with self._store.begin() as connection:
            gone = connection.execute(delete(_FILES).where(_FILES.c.id == file.id)).rowcount
        self.path(file.id).unlink(missing_ok=True)
        return gone > 0

    def path(self, file_id: str) -> Path:
        return self._folder / file_id

    def sweep(self) -> int:
        """Remove what writers left that were killed: files without a row whose writer does not live. Returns
        how many."""
        swept = 0
        for path in self._folder.iterdir() if self._folder.is_dir() else ():
            with suppress(OSError), open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with self._store.connect() as connection:
                    known = connection.execute(select(_FILES.c.id).where(_FILES.c.id == path.name)).first()
                if known is None:
                    path.unlink()
                    swept += 1
        return swept

    def _flush_names(self) -> None:
        """So that the new name survives a loss of power."""
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
