"""Who runs in the next step, and how many of their tokens: pure policy over plain data, no tensors.

Called by `engine` alone. What runs comes first, then what waits, each in the order of arrival, in pieces of
at most `step_tokens` altogether. When pages run out the youngest gives way: it drops its caches, keeps its
tokens and is computed anew later. Invariant: a sequence holds pages and a slot exactly while it is in
`running`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from .pool import Pool
from .sequence import Sequence


@dataclass(frozen=True)
class Piece:
    """The next `length` tokens of a sequence."""

    sequence: Sequence
    length: int


class Scheduler:
    """Two queues and two pools. `plan` moves sequences between them."""

    def __init__(self, pages: Pool, slots: Pool, page_size: int, step_tokens: int) -> None:
        self.pages, self.slots = pages, slots
        self.page_size, self.step_tokens = page_size, step_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    def plan(self) -> list[Piece]:
        """The next step. Sequences newly admitted have `computed == 0`, and a slot that must be cleared."""
        pieces: list[Piece] = []
        left = self.step_tokens
        for sequence in list(self.running):  # oldest first: who gives way to one has no piece yet
            if left and sequence.slot is not None:
                length = self._make_room(sequence, min(left, sequence.pending))
                if length:
                    pieces.append(Piece(sequence, length))
                    left -= length
        while left and self.waiting and self.slots.free:
            length = min(left, self.waiting[0].pending)
            if not self._admit(length):
                break
            pieces.append(Piece(self.running[-1], length))
            left -= length
        return pieces

    def release(self, sequence: Sequence) -> None:
        """Take a sequence out of either queue; its places are free again. Unknown ones are left alone."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._drop(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def _admit(self, length: int) -> bool:
        """Let the first of the waiting in, with pages for its first piece, if all its tokens would fit
        now.
        """
        if self.pages.free * self.page_size < self.waiting[0].pending:
            return False
        pages = self.pages.take(-(-length // self.page_size))
        assert pages is not None
        sequence = self.waiting.popleft()
        slot = self.slots.take(1)
        assert slot is not None
        sequence.pages, sequence.slot = pages, slot[0]
        self.running.append(sequence)
        return True

    def _make_room(self, sequence: Sequence, length: int) -> int:
        """Pages for `length` more tokens, taken from younger ones if need be; 0 if it had to give way
        itself.
        """
        while True:
            missing = -(-(sequence.computed + length) // self.page_size) - len(sequence.pages)
            pages = self.pages.take(max(0, missing))
            if pages is not None:
                sequence.pages += pages
                return length
            youngest = self.running[-1]
            self.running.remove(youngest)
            self._drop(youngest)
            self.waiting.appendleft(youngest)
            if youngest is sequence:
                return 0

    def _drop(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        self.pages.give(sequence.pages)
        self.slots.give([sequence.slot])
        sequence.pages, sequence.slot, sequence.computed = [], None, 0
