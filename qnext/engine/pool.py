"""A pool of numbered places, KV pages or state slots: who has them is the holder's business, none is
given twice.
"""

from __future__ import annotations


class Pool:
    """Places `0 .. size - 1`, all free at first."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._free = list(range(size - 1, -1, -1))

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int] | None:
        """`count` places, or None (and nothing taken) where fewer are free."""
        if count > len(self._free):
            return None
        return [self._free.pop() for _ in range(count)]

    def give(self, places: list[int]) -> None:
        """Take places back. Each must be out."""
        assert not set(places) & set(self._free), "a place was given back twice"
        self._free.extend(places)
