"""The second tier of the prefix cache: entries that outlive their place in the engine's own memory.

The first tier (the tree over token prefixes) writes every checkpoint through to a tier, learns the tier's
headers at the start, and gets payloads when a prompt hits them. This file holds the nouns that tiers share:
what an entry is, what a tier does, and the `Index` in which a tier knows what it has.
Invariant: an entry is useful only with all its ancestors, so a tier never holds one whose parent is gone.
"""

from __future__ import annotations

import struct
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Protocol

import torch
from torch import Tensor


def entry_key(parent: str | None, salt: str, tokens: Sequence[int]) -> str:
    """The name of what `tokens` mean after `parent`, or, without one, at the start of a prompt of `salt`."""
    origin = (salt if parent is None else parent).encode("utf-8", "surrogatepass")
    # kind and length first: no salt and tokens run together into what another pair gives
    head = struct.pack("<BI", parent is None, len(origin)) + origin
    return blake2b(head + struct.pack(f"<{len(tokens)}I", *tokens), digest_size=16).hexdigest()


@dataclass(frozen=True)
class Header:
    """What an entry is a checkpoint of."""

    key: str  # `entry_key` of the rest
    parent: str | None  # the entry whose tokens precede; None: `tokens` begin at the start of the prompt
    salt: str  # tenant: prompts share only within a salt
    tokens: tuple[int, ...]  # those after the parent's

    def __post_init__(self) -> None:
        assert self.tokens, "an entry has at least one token"


@dataclass(frozen=True)
class Entry:
    """A checkpoint. Its tensors are flat bytes in host memory; the first tier knows what they mean."""

    header: Header
    kv: Tensor  # keys and values of the header's tokens
    state: Tensor  # the recurrent state after the last of them

    def __post_init__(self) -> None:
        for payload in (self.kv, self.state):
            assert payload.dtype == torch.uint8 and payload.dim() == 1 and payload.is_contiguous()
            assert payload.device.type == "cpu"

    @property
    def bytes(self) -> int:
        return self.kv.numel() + self.state.numel()


class Tier(Protocol):
    """What the first tier needs. Called from the engine's thread; nothing raises for trouble with I/O."""

    def put(self, entry: Entry) -> None:
        """Keep the entry, which is the tier's from now on. Returns quickly. One whose parent is not here is
        refused, one that is here already counts as used."""

    def get(self, key: str) -> Entry | None:
        """The entry, not to be written to; None: it is gone, and with it its descendants."""

    def headers(self) -> list[Header]:
        """What is here, parents before children."""

    def __contains__(self, key: object) -> bool:
        """Whether children of this entry would be taken."""

    def close(self) -> None:
        """Finish what is pending, within a bounded time."""


@dataclass
class _Place:
    header: Header
    size: int
    used: int


class Index:
    """What a tier has, least recently used first. Using an entry uses its ancestors, which it is worth
    nothing without: so each stands behind its descendants, and the first is always a leaf."""

    def __init__(self, limit_bytes: int) -> None:
        if limit_bytes <= 0:
            raise ValueError(
                f"limit_bytes: {limit_bytes} is not positive: give a size, or leave the tier out"
            )
        self.bytes = 0
        self._limit = limit_bytes
        self._places: OrderedDict[str, _Place] = OrderedDict()

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def used(self, key: str) -> int:
        """When the entry was last used: wall clock, ns."""
        return self._places[key].used

    def takes(self, header: Header, size: int) -> bool:
        """Whether the parent is here, and the entry fits under the limit together with its ancestors."""
        if header.parent is None:
            return size <= self._limit
        parent = self._places.get(header.parent)
        if parent is None or parent.header.salt != header.salt:
            return False
        return size + sum(place.size for place in self._line(header.parent)) <= self._limit

    def add(self, header: Header, size: int) -> None:
        assert header.key not in self and self.takes(header, size)
        self._places[header.key] = _Place(header, size, 0)
        self.bytes += size
        self.use(header.key)

    def use(self, key: str, now: int | None = None) -> None:
        for place in self._line(key):
            place.used = time.time_ns() if now is None else now
            self._places.move_to_end(place.header.key)

    def evict(self) -> Iterator[str]:
        """Remove the least recently used until the rest is under the limit; gives what was removed."""
        while self.bytes > self._limit:
            key, place = self._places.popitem(last=False)
            self.bytes -= place.size
            yield key

    def remove(self, key: str) -> list[str]:
        """Remove the entry, if it is here, and its descendants; gives what was removed, children first."""
        gone = {key}
        for each, place in reversed(self._places.items()):  # an ancestor comes before its descendants
            if place.header.parent in gone:
                gone.add(each)
        removed = [each for each in self._places if each in gone]
        for each in removed:
            self.bytes -= self._places.pop(each).size
        return removed

    def headers(self) -> list[Header]:
        """Parents before children, most recently used first."""
        return [place.header for place in reversed(self._places.values())]

    def _line(self, key: str | None) -> Iterator[_Place]:
        """The entry, its parent, and so on up to the start of the prompt."""
        while key is not None:
            place = self._places[key]
            yield place
            key = place.header.parent
