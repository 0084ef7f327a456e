"""A folder of entries on disk: one file an entry, under the entry's key.

The disk tier calls it: at the start and to read from the engine's thread, to write and to remove from its
writer's. Invariants: a file under an entry's name was written whole (aside, flushed, then renamed), so a
process may be killed at any moment; files and folder are the owner's alone, for prompts are private. Several
processes may share a folder: what one removes, the others find missing. Raises OSError and `Damaged`.
"""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .entry_file import Damaged, read_entry, read_header, write_entry
from .tier import Entry, Header

WHOLE, ASIDE = ".entry", ".writing"


@dataclass(frozen=True)
class Found:
    """What the name and the start of a file say. Where the header cannot be had: why."""

    key: str
    header: Header | OSError | Damaged
    size: int = 0
    used: int = 0  # wall clock, ns


class EntryFolder:
    """The files of `root/fingerprint`."""

    def __init__(self, root: Path, fingerprint: str) -> None:
        if not re.fullmatch("[0-9a-f]+", fingerprint):
            raise ValueError(
                f"fingerprint: {fingerprint!r} is not lower-case hex: give a digest of the model"
            )
        self._root, self._folder, self._fingerprint = root, root / fingerprint, fingerprint

    def scan(self) -> Iterator[Found]:
        """Make the folder, or clear what dead processes left in it and give what it holds."""
        self._make()
        self._folder.chmod(0o700)
        with os.scandir(self._folder) as items:
            paths = [Path(item.path) for item in items if item.is_file(follow_symlinks=False)]
        for path in paths:
            if path.suffix == ASIDE:
                _clear(path)
            elif path.suffix == WHOLE:
                with suppress(FileNotFoundError):  # another server has just evicted it
                    yield self._look(path)

    def read(self, key: str) -> Entry:
        with open(self._path(key), "rb") as file:
            entry = read_entry(file, self._fingerprint)
        if entry.header.key != key:
            raise Damaged(f"another entry's file is in place of {key}")
        return entry

    def write(self, entry: Entry) -> None:
        self._make()  # it may have been removed
        key = entry.header.key
        handle, aside = tempfile.mkstemp(dir=self._folder, prefix=f"{key}.", suffix=ASIDE)
        try:
            with open(handle, "wb") as file:
                fcntl.flock(handle, fcntl.LOCK_EX)  # says that this process lives
                write_entry(file, entry, self._fingerprint)
                file.flush()
                os.fsync(handle)
                os.rename(aside, self._path(key))
        except OSError:
            with suppress(OSError):
                os.unlink(aside)
            raise
        self._flush_names()

    def touch(self, key: str, used: int) -> None:
        """Note the use for the next start. Where that fails, only the order of eviction suffers."""
        with suppress(OSError):
            os.utime(self._path(key), ns=(used, used))

    def remove(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._folder / (key + WHOLE)

    def _make(self) -> None:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder.mkdir(mode=0o700, exist_ok=True)

    def _flush_names(self) -> None:
        """So that new names survive a loss of power. Without it the entries are no less whole."""
        with suppress(OSError):
            folder = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _look(self, path: Path) -> Found:
        try:
            with open(path, "rb") as file:
                header, facts = read_header(file, self._fingerprint), os.fstat(file.fileno())
            if header.key != path.stem:
                raise Damaged(f"another entry's file is in place of {path.stem}")
        except FileNotFoundError:
            raise
        except (OSError, Damaged) as error:
            return Found(path.stem, error)
        return Found(path.stem, header, facts.st_size, facts.st_mtime_ns)


def _clear(path: Path) -> None:
    """Remove a file that was being written, unless its writer lives and so holds its lock. (One who has made
    the file but not locked it yet loses this entry.)"""
    with suppress(OSError), open(path, "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
