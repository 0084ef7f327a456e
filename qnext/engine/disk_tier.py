"""A tier on disk, which outlives the process. Entries are written by a thread of its own.

The first tier calls it, from the engine's thread. Invariants: an entry in the index is in the queue or on
disk, or getting it says that it is gone; trouble with the disk costs entries, never the engine's step.
Servers may share a folder: each keeps to its own limit.
"""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from threading import Condition, Thread

from .entry_file import Damaged, file_bytes
from .entry_folder import EntryFolder, Found
from .tier import Entry, Header, Index

log = logging.getLogger(__name__)

CLOSE_SECONDS = 10.0
QUEUE_BYTES = 1 << 29  # what may wait in memory to be written


class DiskTier:
    """Entries below `folder`; a `Tier`. `counts`: what was evicted, refused, dropped (the disk is too slow),
    damaged, failed."""

    def __init__(
        self, folder: Path, fingerprint: str, limit_bytes: int, queue_bytes: int = QUEUE_BYTES
    ) -> None:
        """`fingerprint`: hex, of all that gives the bytes in entries their meaning. Reads every header."""
        if queue_bytes <= 0:
            raise ValueError(f"queue_bytes: {queue_bytes} is not positive: give room for an entry or more")
        self.counts: Counter[str] = Counter()
        self._folder, self._fingerprint = EntryFolder(folder, fingerprint), fingerprint
        self._index = Index(limit_bytes)
        self._queue: dict[str, Entry] = {}  # in the index, but not yet on disk; in order of arrival
        self._queued_bytes, self._queue_bytes = 0, queue_bytes
        self._writing: str | None = None  # what the writer has of the queue, as long as it is wanted
        self._doomed: list[str] = []  # on disk still, but no longer in the index
        self._closing = False
        self._told: set[tuple[str, type, int | None]] = set()
        self._changed = Condition()  # guards all of the above
        self._load()
        self._writer = Thread(target=self._write_on, name="qnext-disk-tier", daemon=True)
        self._writer.start()

    def put(self, entry: Entry) -> None:
        header, size = entry.header, file_bytes(entry, self._fingerprint)
        with self._changed:
            if header.key in self._index:
                self._use(header.key)
                return
            if self._closing or not self._index.takes(header, size):
                self.counts["refused"] += 1
                return
            self._index.add(header, size)
            self._queue[header.key] = entry
            self._queued_bytes += entry.bytes
            for old in self._index.evict():
                self.counts["evicted"] += 1
                self._discard(old)
            self._shorten()
            self._changed.notify_all()

    def get(self, key: str) -> Entry | None:
        with self._changed:
            if key not in self._index:
                return None
            self._use(key)
            if key in self._queue:
                return self._queue[key]
        try:
            return self._folder.read(key)
        except (OSError, Damaged) as error:
            with self._changed:
                self._note("read", error)
                self._lose(key)
                self._changed.notify_all()
            return None

    def headers(self) -> list[Header]:
        with self._changed:
            return self._index.headers()

    def __contains__(self, key: object) -> bool:
        with self._changed:
            return key in self._index

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._writer.join(CLOSE_SECONDS)
        with self._changed:
            late = [key for key in self._queue if key != self._writing]
            if late:
                log.warning("disk tier: %d entries could not be written in time", len(late))
            for key in late:
                self.counts["dropped"] += self._lose(key)

    def _load(self) -> None:
        found: dict[str, Found] = {}
        children: dict[str | None, list[Header]] = {}
        try:
            for each in self._folder.scan():
                found[each.key] = each
                if isinstance(each.header, Header):
                    children.setdefault(each.header.parent, []).append(each.header)
                else:
                    self._note("read", each.header)
        except OSError as error:
            self._note("open", error)
        line = children.get(None, [])
        for header in line:  # which grows on the way: parents before children
            if self._index.takes(header, found[header.key].size):
                self._index.add(header, found[header.key].size)
                line += children.get(header.key, [])
        for used, key in sorted((found[key].used, key) for key in self._index):
            self._index.use(key, used)
        evicted = list(self._index.evict())
        self.counts["evicted"] += len(evicted)
        self._doomed = [key for key in found if key not in self._index]  # damaged, without a parent, evicted

    def _use(self, key: str) -> None:
        self._index.use(key)
        if key not in self._queue:
            self._folder.touch(key, self._index.used(key))

    def _shorten(self) -> None:
        """Drop the oldest in the queue until it is short enough: of those that no other there comes after."""
        while self._queued_bytes > self._queue_bytes:
            parents = {entry.header.parent for entry in self._queue.values()}
            ends = (key for key in self._queue if key not in parents and key != self._writing)
            victim = next(ends, None)
            if victim is None or len(self._queue) == 1:  # one alone may be of any size
                return
            self.counts["dropped"] += self._lose(victim)

    def _lose(self, key: str) -> int:
        """Forget an entry and its descendants; says how many that were."""
        lost = self._index.remove(key)
        for each in lost:
            self._discard(each)
        return len(lost)

    def _discard(self, key: str) -> None:
        """Take what the index has forgotten out of the queue or off the disk."""
        if self._unqueue(key) is None or key == self._writing:
            self._doomed.append(key)
        if key == self._writing:
            self._writing = None

    def _unqueue(self, key: str) -> Entry | None:
        entry = self._queue.pop(key, None)
        if entry is not None:
            self._queued_bytes -= entry.bytes
        return entry

    def _note(self, deed: str, error: OSError | Damaged) -> None:
        self.counts["damaged" if isinstance(error, Damaged) else "failed"] += 1
        kind = deed, type(error), getattr(error, "errno", None)
        if kind not in self._told:
            self._told.add(kind)
            log.warning("disk tier: cannot %s entries (said once): %s", deed, error)

    def _write_on(self) -> None:
        """The writer's thread."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._doomed or self._closing)
                doomed, self._doomed = self._doomed, []
                entry = next(iter(self._queue.values()), None)
                self._writing = entry.header.key if entry is not None else None
            for key in doomed:  # before the entry, which may be one of them, put again
                self._remove(key)
            if entry is not None:
                self._write(entry)
            elif not doomed:
                return

    def _write(self, entry: Entry) -> None:
        key, error = entry.header.key, None
        try:
            self._folder.write(entry)
        except OSError as caught:
            error = caught
        with self._changed:
            wanted, self._writing = self._writing == key, None
            if error is not None:
                self._note("write", error)
                if wanted:
                    self._lose(key)
            elif wanted:
                self._unqueue(key)
                self._folder.touch(key, self._index.used(key))

    def _remove(self, key: str) -> None:
        try:
            self._folder.remove(key)
        except OSError as error:
            with self._changed:
                self._note("remove", error)
