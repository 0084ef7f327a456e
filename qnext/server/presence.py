"""Presence: a lock that a server holds on a file of its own while it lives, so that others know who is dead.

Made by `admission`. Invariant: the system lets go of the lock when the process ends, however it ends; only
the owner's end, or proof of it, removes the file.
"""

from __future__ import annotations

import uuid
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout


class Presence:
    """A new server's presence in folder `home`; `name` is its own. Raises ValueError when it cannot be
    written."""

    def __init__(self, home: Path) -> None:
        self.name = uuid.uuid4().hex
        self._folder = home / "servers"
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = self._of(self.name)
            self._lock.acquire(timeout=0)
        except OSError as error:
            words = f"QNEXT_HOME: cannot write {self._folder} ({error.strerror}): give another folder"
            raise ValueError(words) from None

    def lives(self, name: str) -> bool:
        """Whether the server of that name still runs; the file of one that does not is removed."""
        if name == self.name:
            return True
        lock = self._of(name)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return True
        self._end(lock)
        return False

    def close(self) -> None:
        self._end(self._lock)

    def _of(self, name: str) -> FileLock:
        return FileLock(self._folder / f"{name}.lock", thread_local=False)

    @staticmethod
    def _end(lock: FileLock) -> None:
        lock.release()
        with suppress(OSError):
            Path(lock.lock_file).unlink()
