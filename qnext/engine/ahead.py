"""A look ahead along a sequence: what its grammar allows after tokens that it may get.

Used by `drafting` for guesses and by `steps` for the rows that judge them. Invariant: the grammar itself has
taken in accepted tokens only; a copy of it looks ahead.
"""

from __future__ import annotations

import numpy as np

from .plan import Piece
from .sampler import Row
from .sequence import Sequence


class Ahead:
    """`error`: the grammar has failed, and from there on nothing is known."""

    def __init__(self, sequence: Sequence) -> None:
        self._matcher, self._room = sequence.matcher, sequence.room
        self._reasoning, self._bounds = sequence.reasoning, sequence.request.reasoning
        self._own = False  # whether the matcher is a copy
        self._lost = False
        self.error: Exception | None = None

    def allowed(self) -> np.ndarray | None:
        """What may come next (None: anything)."""
        if self._matcher is None or self._reasoning or self._lost:
            return None
        try:
            return self._matcher.allowed(max(1, self._room))
        except Exception as error:
            self._lost, self.error = True, error
            return None

    def take(self, token: int, allowed: np.ndarray | None) -> None:
        """Suppose that `token` comes next, where `allowed` is what may. After one that may not, nothing is
        known: it will be rejected."""
        self._room -= 1
        if self._reasoning:
            self._reasoning = self._bounds is None or token != self._bounds.end
        elif self._matcher is not None and not self._lost:
            self._lost = allowed is not None and not (token < len(allowed) and allowed[token])
            if not self._lost:
                try:
                    if not self._own:
                        self._matcher, self._own = self._matcher.copy(), True
                    self._matcher.accept(token)
                except Exception as error:
                    self._lost, self.error = True, error


def rows_after(piece: Piece) -> list[Row]:
    """The rows to choose from: after the last token of a whole piece, and after each draft, as far as the
    grammar can tell. Raises what the grammar raises where it cannot even tell the first."""
    if not piece.drafts and piece.sequence.matcher is None:  # nearly always
        return [Row(piece.sequence)]
    if piece.sequence.matcher is None:
        return [Row(piece.sequence, piece.drafts[:j]) for j in range(1 + len(piece.drafts))]
    rows: list[Row] = []
    look = Ahead(piece.sequence)
    for j in range(1 + len(piece.drafts)):
        allowed = look.allowed()
        if look.error is not None:
            break
        rows.append(Row(piece.sequence, piece.drafts[:j], allowed))
        if j < len(piece.drafts):
            look.take(piece.drafts[j], allowed)
    if look.error is not None and not rows:
        raise look.error
    return rows
