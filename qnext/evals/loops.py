"""Loops: whether a text has caught itself saying the same thing over and over.

Used by `gates` on told stories. Invariant: a refrain that comes back after other words is no loop.
"""

from __future__ import annotations

from collections import Counter

GRAM = 4  # words


def loops(text: str) -> bool:
    """Whether four words come three times in a row, the second and third time after the same words: for some
    distance p, 2p + 4 words of the text repeat what stood p words before."""
    words = text.lower().split()
    for period in range(1, (len(words) - GRAM) // 2 + 1):
        run = 0
        for here, before in zip(words[period:], words, strict=False):
            run = run + 1 if here == before else 0
            if run == period + GRAM:
                return True
    return False


def most_repeated(text: str) -> int:
    """How often the commonest four words in a row occur anywhere in the text; 0 if it is shorter."""
    words = text.lower().split()
    grams = Counter(tuple(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1))
    return max(grams.values(), default=0)
