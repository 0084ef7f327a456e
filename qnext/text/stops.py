"""The stop matcher: finds the first of several stop strings in a text that comes in pieces.

Used by `parser` on the answer's text. Invariant: what it releases depends on the characters alone, never on
how they were cut into pieces, and never holds a stop string or the beginning of one that may still be
completed.
"""

from __future__ import annotations

from collections.abc import Iterable


class StopMatcher:
    """`matched` turns True when a stop string is complete: the one that ends first, of those the longest;
    `found` is that string."""

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = [(stop, _borders(stop)) for stop in sorted(set(stops), key=len, reverse=True)]
        if self._stops and not self._stops[-1][0]:
            raise ValueError("stop holds an empty text: leave it out")
        self._lengths = [0] * len(self._stops)  # how much of each stop string the text so far ends with
        self._held = ""
        self.matched, self.found = False, ""

    def feed(self, text: str) -> str:
        """Add text; returns what is certain not to belong to a stop string. After a match: nothing."""
        if self.matched:
            return ""
        if not self._stops:
            return text
        whole, offset = self._held + text, len(self._held)
        for i, char in enumerate(text, start=offset + 1):
            for n, (stop, borders) in enumerate(self._stops):
                length = self._lengths[n]
                while length and stop[length] != char:
                    length = borders[length - 1]
                self._lengths[n] = length = length + (stop[length] == char)
                if length == len(stop):
                    self.matched, self.found, self._held = True, stop, ""
                    return whole[: i - length]
        cut = len(whole) - max(self._lengths)
        self._held = whole[cut:]
        return whole[:cut]

    def flush(self) -> str:
        """Release what is held back: no more text follows it."""
        held, self._held = self._held, ""
        self._lengths = [0] * len(self._stops)
        return held


def _borders(text: str) -> list[int]:
    """For each prefix of `text`, the length of its longest proper prefix that is also its suffix (Knuth,
    Morris and Pratt)."""
    borders = [0] * len(text)
    length = 0
    for i in range(1, len(text)):
        while length and text[i] != text[length]:
            length = borders[length - 1]
        length += text[i] == text[length]
        borders[i] = length
    return borders
