"""Rounds: how long the engine takes from one choice of a number of guesses to the next.

Asked by `steps` once a step. Invariant: only a round of nothing but the answers that the choice was made for
is held against it; one that a prompt, an end or a failure fell into is forgotten.
"""

from __future__ import annotations

import time

from .pace import Pace
from .plan import Piece
from .sequence import Sequence


class Rounds:
    """Tells a pace what its choices have cost, and what became of the guesses."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self._asked: list[Sequence] = []  # for whom the last choice was made
        self._count, self._begun = 0, 0.0

    def rest(self, answers: int) -> bool:
        """Whether there is nothing to choose or to measure now, for so many answers, nor soon."""
        if not self.pace.rest(answers):
            return False
        self._asked = []  # what comes next has not begun with this choice
        return True

    def choose(self, pieces: list[Piece], guessing: list[Sequence]) -> int:
        """How many guesses to make now for each of `guessing`; `pieces` are what was just computed."""
        now = time.perf_counter()
        heard = self.pace.listens and all([piece.length == 1 for piece in pieces])
        if heard and self._are_asked([piece.sequence for piece in pieces]):
            self.pace.took(len(pieces), self._count, now - self._begun)
        self._count = self.pace.choose(len(guessing)) if guessing else 0
        self._asked, self._begun = guessing, now
        return self._count

    def _are_asked(self, sequences: list[Sequence]) -> bool:
        return sequences == self._asked or set(sequences) == set(self._asked)

    def judged(self, sequence: Sequence, right: int) -> None:
        """So many guesses of a sequence were right."""
        if sequence.asked:
            self.pace.judged(sequence.asked, right)
            sequence.asked = 0

    def forget(self) -> None:
        """What this round takes says nothing of its choice."""
        self._asked = []
