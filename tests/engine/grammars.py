"""Grammars over ids for tests: simple enough to say by hand what they allow."""

from __future__ import annotations

import numpy as np

VOCABULARY = 97


class Counting:
    """The next token must be one more than the last (from 0 on), or `END`, which must come when there is
    room for no more. A matcher that remembers all it was asked."""

    END = 96

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at = fails_at
        self.taken: list[int] = []
        self.rooms: list[int] = []

    def start(self) -> Counting:
        return Counting(self.fails_at)

    def allowed(self, room: int) -> np.ndarray:
        if len(self.taken) == self.fails_at:
            raise RuntimeError("the grammar meets its limits")
        self.rooms.append(room)
        mask = np.zeros(VOCABULARY, bool)
        mask[self.END] = True
        if room > 1:
            mask[len(self.taken)] = True
        return mask

    def accept(self, token: int) -> None:
        assert token in (len(self.taken), self.END)
        self.taken.append(token)

    def copy(self) -> Counting:
        made = Counting(self.fails_at)
        made.taken, made.rooms = list(self.taken), self.rooms
        return made
