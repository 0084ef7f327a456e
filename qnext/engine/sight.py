"""What the MTP head has seen of a text, page by page.

Kept in `pages`, whose pages texts share; asked by `head`. Invariant: a page that counts as filled up to some
cell has an entry of the head in each before it, and an entry depends on the tokens up to its own alone.
"""

from __future__ import annotations

from collections.abc import MutableSequence, Sequence


def fill(filled: MutableSequence[int], pages: Sequence[int], begin: int, end: int, size: int) -> None:
    """The head has written the cells `begin` to `end` of a text whose pages of `size` cells these are.

    `filled`: of each page, how many cells from its first on hold entries. A text's cell 0 never holds one.
    """
    begin = 0 if begin == 1 else begin
    for place in range(begin // size, -(-end // size)):
        first = max(begin - place * size, 0)
        if filled[pages[place]] >= first:  # else there is a gap before it
            filled[pages[place]] = max(filled[pages[place]], min(end - place * size, size))


def blank(filled: Sequence[int], pages: Sequence[int], length: int, size: int) -> int:
    """The first cell of the page from which on all cells before `length` hold entries."""
    for place in range((length - 1) // size if length > 1 else -1, -1, -1):
        if filled[pages[place]] < min(length - place * size, size):
            return (place + 1) * size
    return 0
