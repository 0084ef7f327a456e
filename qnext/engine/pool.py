"""A pool of numbered places, such as state slots: who has them is the holder's business, none is given
twice.
"""

from __future__ import annotations


class Pool:
    """Places `first .. first + size - 1`, all free at first."""

    def __init__(self, size: int, first: int = 0) -> None:
        self.size = size
        self._free = list(range(first + size - 1, first - 1, -1))
        self.out: set[int] = set()

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int] | None:
        """`count` places, or None (and nothing taken) where fewer are free."""
        if count > len(self._free):
            return None
        places = [self._free.pop() for _ in range(count)]
        self.out.update(places)
        return places

    def give(self, places: list[int]) -> None:
        """Take places back. Each must be out."""
        assert self.out.issuperset(places), "a place was given back twice"
        self.out.difference_update(places)
        self._free.extend(places)
