"""The keeper: carries states into the prefix cache while sequences run and when they end.

Called by `steps` after each forward. Invariant: what is kept is sound, accepted and complete: the MTP head
has seen all but the last of its tokens, unless it rests.
"""

from __future__ import annotations

from collections.abc import Container

from .cache import PrefixCache
from .head import Head
from .plan import Piece
from .pool import Pool
from .runner import Runner
from .second_tier import SecondTier
from .sequence import Sequence
from .stream import Stream


class Keeper:
    """A state is kept at a sequence's marks, every `stride` tokens, and at its end."""

    def __init__(
        self,
        runner: Runner,
        head: Head | None,
        cache: PrefixCache | None,
        tier: SecondTier | None,
        spare: Pool,
        stride: int,
    ) -> None:
        self._runner, self._head, self._cache, self._tier = runner, head, cache, tier
        self._spare, self._stride = spare, stride

    def is_due(self, piece: Piece, *, ended: bool) -> bool:
        """Whether states of this piece, which has just been computed, are to be kept."""
        sequence = piece.sequence
        if self._cache is None or sequence.tainted:
            return False
        ends = ended or sequence.computed in sequence.marks
        far = sequence.computed - sequence.kept >= self._stride
        return bool(piece.saves) or ((ends or far) and sequence.computed > sequence.kept)

    def unread(self, pieces: list[Piece], ended: Container[Stream]) -> list[Sequence]:
        """Whose waiting hidden states the MTP head has to see now, before a state is kept."""
        return [p.sequence for p in pieces if self.is_due(p, ended=p.sequence.stream in ended)]

    def keep(self, piece: Piece, *, ended: bool) -> None:
        """Keep what is due, and free the spare slots."""
        sequence = piece.sequence
        due = self.is_due(piece, ended=ended)
        for mark, slot in piece.saves:
            if due:
                self._insert(sequence, mark, slot, 0)
            self._spare.give([slot])
        ends = ended or sequence.computed in sequence.marks
        if due and (ends or sequence.computed - sequence.kept >= self._stride):
            self._keep_end(sequence)
        if sequence.marks:
            sequence.marks = [mark for mark in sequence.marks if mark > sequence.computed]

    def keep_whole(self, sequence: Sequence) -> None:
        """Keep a running sequence as it stands between two steps."""
        whole = sequence.computed > sequence.kept and not sequence.tainted and not sequence.suspect
        if self._cache is not None and whole:
            if self._head and not self._head.resting and sequence.computed < len(sequence.tokens):
                self._head.absorb([], [sequence])
            self._keep_end(sequence)

    def _keep_end(self, sequence: Sequence) -> None:
        assert sequence.slot is not None
        if self._head is not None:
            self._head.remember(sequence)
        self._insert(sequence, sequence.computed, sequence.slot, sequence.replays)

    def _insert(self, sequence: Sequence, length: int, slot: int, replays: int) -> None:
        assert self._cache is not None and sequence.cursor is not None
        made = self._cache.insert(
            sequence.cursor, sequence.root, sequence.tokens, length, sequence.pages, replays
        )
        sequence.kept, sequence.blank = max(sequence.kept, length), None  # pages may be others' now
        if made is not None:
            assert made.state is not None
            try:
                self._runner.store(slot, made.state, replays)
            except Exception:
                self._cache.remove(made)  # it holds nothing
                raise
            if self._tier is not None:
                self._tier.write(made, slot, sequence.pages)
