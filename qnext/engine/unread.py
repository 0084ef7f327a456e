"""Hidden states of one sequence that wait until the MTP head reads them, many at once.

Filled and read by `head`, thrown away with what the sequence has computed. Invariant: what waits is the end
of what was computed, without a gap.
"""

from __future__ import annotations

from torch import Tensor

Part = tuple[Tensor, int, int]  # rows of a forward, the first that is the sequence's, and how many are


class Unread:
    """What waits, in order, up to that of the text's token before `end`; and the `newest` [1, H], read or
    not."""

    __slots__ = ("_last", "_parts", "count", "end")

    def __init__(self) -> None:
        self._parts: list[Part] = []
        self._last: Part | None = None  # where the newest is, once it was read
        self.count = 0  # hidden states that wait
        self.end = 0

    def put(self, rows_TH: Tensor, start: int, count: int, end: int) -> bool:
        """The sequence has `count` of a forward's rows, from `start` on; they must not change any more ->
        whether some before them never came, so that what waited is of no use."""
        gap = self.known and end - count != self.end
        if gap:
            self._parts, self.count = [], 0
        self._parts.append((rows_TH, start, count))
        self.count, self.end = self.count + count, end
        return gap

    @property
    def parts(self) -> int:
        """Forwards of which some wait."""
        return len(self._parts)

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

    def read(self, *, newest: bool, skip: int = 0) -> list[Part]:
        """What waits but for the first `skip`, in order; it waits no more. Without `newest`, that one still
        does, and the memory of all others is let go."""
        parts = self._parts
        rows_TH, start, count = parts[-1]
        if newest:
            self._parts, self._last, self.count = [], (rows_TH, start + count - 1, 1), 0
        else:
            self._parts, self.count = [(self.newest.clone(), 0, 1)], 1
            parts[-1] = rows_TH, start, count - 1
        while parts and skip >= parts[0][2]:
            skip -= parts.pop(0)[2]
        if skip and parts:
            rows_TH, start, count = parts[0]
            parts[0] = rows_TH, start + skip, count - skip
        return parts
