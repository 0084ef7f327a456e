"""A tier in host memory, for an engine whose own memory is an accelerator's.

The first tier calls it, from the engine's thread. Invariant: what it holds is at most `limit_bytes`, counted
as the allocator gives it.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from .tier import Entry, Header, Index


def _pinned(payload: Tensor) -> Tensor:
    """Page-locked where there is an accelerator, which copies from such memory several times as fast."""
    return payload.pin_memory() if torch.cuda.is_available() and not payload.is_pinned() else payload


def _held_bytes(payload: Tensor) -> int:
    """Page-locked memory is given in powers of two."""
    size = payload.numel()
    return 1 << (size - 1).bit_length() if size and payload.is_pinned() else size


class HostTier:
    """Entries in host memory; a `Tier`. `counts`: what was evicted and refused."""

    def __init__(self, limit_bytes: int) -> None:
        self.counts: Counter[str] = Counter()
        self._index = Index(limit_bytes)
        self._entries: dict[str, Entry] = {}

    def put(self, entry: Entry) -> None:
        key = entry.header.key
        if key in self._index:
            self._index.use(key)
            return
        if not self._index.takes(entry.header, entry.bytes):  # before the cost of pinning
            self.counts["refused"] += 1
            return
        entry = Entry(entry.header, _pinned(entry.kv), _pinned(entry.state))
        size = _held_bytes(entry.kv) + _held_bytes(entry.state)
        if not self._index.takes(entry.header, size):
            self.counts["refused"] += 1
            return
        self._index.add(entry.header, size)
        self._entries[key] = entry
        for old in self._index.evict():
            self.counts["evicted"] += 1
            del self._entries[old]

    def get(self, key: str) -> Entry | None:
        entry = self._entries.get(key)
        if entry is not None:
            self._index.use(key)
        return entry

    def headers(self) -> list[Header]:
        return self._index.headers()

    def __contains__(self, key: object) -> bool:
        return key in self._index

    def close(self) -> None:
        """Nothing is pending."""
