"""Hidden states of one sequence that wait until the MTP head reads them, many at once.

Filled and read by `runner`, thrown away with what the sequence has computed. Invariant: to put some there
costs next to nothing, since it happens at every step: they stay where the forward left them.
"""

from __future__ import annotations

from torch import Tensor

Part = tuple[Tensor, int, int]  # rows of a forward, the first that is the sequence's, and how many are


class Unread:
    """What waits, in order; and the `newest` [1, H], of the last computed token, read or not."""

    __slots__ = ("_last", "_parts")

    def __init__(self) -> None:
        self._parts: list[Part] = []
        self._last: Part | None = None  # where the newest is, once it was read

    def put(self, rows_TH: Tensor, start: int, count: int) -> int:
        """The sequence has `count` of a forward's rows, from `start` on; they must not change any more -> of
        how many forwards some wait."""
        self._parts.append((rows_TH, start, count))
        return len(self._parts)

    @property
    def count(self) -> int:
        """Hidden states that wait."""
        return sum(count for _, _, count in self._parts)

    @property
    def known(self) -> bool:
        """Whether there is a newest."""
        return self._last is not None or bool(self._parts)

    @property
    def newest(self) -> Tensor:
        part = self._parts[-1] if self._parts else self._last
        assert part is not None
        rows_TH, start, count = part
        return rows_TH[start + count - 1 : start + count]

    def read(self, *, newest: bool) -> list[Tensor]:
        """What waits, in order [., H]; it waits no more. Without `newest`, that one still does, and the
        memory of all others is let go."""
        parts = [rows_TH[start : start + count] for rows_TH, start, count in self._parts]
        if newest:
            self._parts, self._last = [], (self.newest, 0, 1)
        else:
            self._parts = [(self.newest.clone(), 0, 1)]
            parts[-1] = parts[-1][:-1]
        return parts
