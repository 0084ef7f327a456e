"""Pages of memory, shared by counting: a page holds keys and values of tokens, or a part of a kept state.

Taken by `scheduler` for running sequences, kept by `cache` for later ones. Invariant: a page is free exactly
when no sequence uses it and the cache does not keep it.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable


class Pages:
    """Pages `0 .. size - 1`, all free at first."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._free = list(range(size - 1, -1, -1))
        self._users = [0] * size
        self._keeps = [0] * size
        self.kept = 0
        self.filled = array("q", bytes(8 * size))  # how much of each the MTP head has seen: see `sight`
        self.idle = 0  # kept, and used by no sequence: the cache could give them up

    @property
    def free(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int] | None:
        """`count` pages for one user, or None (and nothing taken) where fewer are free."""
        if count > len(self._free):
            return None
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._users[page], self.filled[page] = 1, 0
        return pages

    def use(self, pages: Iterable[int]) -> None:
        """One more user of pages that are out."""
        for page in pages:
            assert self._users[page] or self._keeps[page], "a free page cannot be shared"
            self.idle -= self._users[page] == 0
            self._users[page] += 1

    def drop(self, pages: Iterable[int]) -> None:
        """One user less."""
        for page in pages:
            assert self._users[page], "a page was given back twice"
            self._users[page] -= 1
            if not self._users[page]:
                self._rest(page)

    def keep(self, pages: Iterable[int]) -> None:
        """The cache holds on to pages that somebody uses, or that it keeps already."""
        for page in pages:
            assert self._users[page] or self._keeps[page], "a free page cannot be kept"
            self.kept += self._keeps[page] == 0
            self._keeps[page] += 1

    def forget(self, pages: Iterable[int]) -> None:
        """The cache lets go of pages, once."""
        for page in pages:
            assert self._keeps[page], "a page was forgotten that was not kept"
            self._keeps[page] -= 1
            self.kept -= self._keeps[page] == 0
            if not self._keeps[page] and not self._users[page]:
                self.idle -= 1
                self._free.append(page)

    def _rest(self, page: int) -> None:
        """Nobody uses the page any more."""
        if self._keeps[page]:
            self.idle += 1
        else:
            self._free.append(page)
