"""Hidden states of one sequence that wait until the MTP head reads them, many at once.

Filled and read by `runner`, thrown away with what the sequence has computed. Invariant: to put some there
costs next to nothing, since it happens at every step: they stay where the forward left them.
"""

from __future__ import annotations

from torch import Tensor


class Unread:
    """`count` hidden states wait; `newest` [1, H] is that of the last computed token, read or not."""

    __slots__ = ("_parts", "_place", "_rows", "count")

    def __init__(self) -> None:
        self.count = 0
        self._parts: list[tuple[Tensor, int, int]] = []  # rows of a forward, the first of these, how many
        self._rows: Tensor | None = None  # where the newest is, and which row it is
        self._place = 0

    def put(self, rows_TH: Tensor, start: int, count: int) -> None:
        """The sequence has `count` of a forward's rows, from `start` on; they must not change any more."""
        self._parts.append((rows_TH, start, count))
        self.count += count
        self._rows, self._place = rows_TH, start + count - 1

    @property
    def known(self) -> bool:
        """Whether there is a newest."""
        return self._rows is not None

    @property
    def newest(self) -> Tensor:
        assert self._rows is not None
        return self._rows[self._place : self._place + 1]

    def read(self, *, newest: bool) -> list[Tensor]:
        """What waits, in order [., H]; it waits no more. Without `newest`, that one still does, and the
        memory of all others is let go."""
        parts = [rows_TH[start : start + count] for rows_TH, start, count in self._parts]
        self._parts, self.count = [], 0
        if not newest:
            self._rows, self._place = self.newest.clone(), 0
            self._parts, self.count = [(self._rows, 0, 1)], 1
            parts[-1] = parts[-1][:-1]
        return parts
