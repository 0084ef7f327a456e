"""Hidden states that wait until the MTP head reads them, many at once.

Made and read by `runner`. Invariant: they are copied to one piece of memory, forward after forward, since
putting one there at every step must cost next to nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .sequence import Sequence

ROWS = 1024  # that may wait: 8 MiB of the 80B's
SHORT = 64  # rows of a forward that is put there as it is

Span = tuple[Sequence, int, int]  # a sequence's rows of a forward: where they start, and how many they are


class Unread:
    """`rows` [R, H]; sequences have the places of theirs. A forward may have up to `most` rows."""

    def __init__(self, slots: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.most = max(SHORT, slots)
        self.rows = torch.zeros(max(ROWS, 4 * self.most), width, dtype=dtype, device=device)
        self._next = 0
        self._known: dict[Sequence, None] = {}

    @property
    def full(self) -> bool:
        """Whether there may be no room for another forward: `clear` it."""
        return self._next + self.most > len(self.rows)

    def put(self, hidden_TH: Tensor, spans: list[Span]) -> None:
        """Keep a forward's rows for the sequences that they are of."""
        begin, self._next = self._next, self._next + len(hidden_TH)
        self.rows[begin : self._next] = hidden_TH
        for sequence, start, count in spans:
            if sequence.newest is None:
                self._known[sequence] = None
            sequence.newest = begin + start + count - 1
            sequence.unread += range(begin + start, begin + start + count)

    def at(self, places: list[int]) -> Tensor:
        """Rows [., H], copied."""
        return self.rows[torch.tensor(places, dtype=torch.long, device=self.rows.device)]

    def waiting(self) -> list[Sequence]:
        """Sequences of which more waits than the newest row."""
        return [sequence for sequence in self._alive() if len(sequence.unread) > 1]

    def clear(self) -> None:
        """Make room: the newest rows alone stay."""
        alive = self._alive()
        self._known, self._next = dict.fromkeys(alive), len(alive)
        self.rows[: len(alive)] = self.at([each.newest for each in alive if each.newest is not None])
        for place, each in enumerate(alive):
            each.unread, each.newest = [place] if each.unread else [], place

    def _alive(self) -> list[Sequence]:
        return [each for each in self._known if each.newest is not None and each.slot is not None]
