"""Chain: a text too long for one call, read piece by piece, each call knowing what was found so far.

Called by programs. Invariant: every character of the text is in exactly one piece, and a call never holds
more than one piece and the notes so far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

_ENDS = ("\n\n", "\n", ". ", "。", " ")
_FIRST = "{task}\n\nThis is part {part} of {parts} of the text:\n\n{piece}"
_NEXT = (
    "{task}\n\nWhat you found in the parts before:\n\n{notes}\n\n"
    "Go on with part {part} of {parts} and combine it with what you found:\n\n{piece}"
)


def chain(ask: Callable[[str], str], text: str, task: str, *, size: int = 8_000) -> str:
    """The last of the answers that `ask(prompt)` gives, one for each piece of at most `size` characters, in
    order; each prompt holds `task` and the answer before. Raises ValueError for an empty text."""
    parts = list(pieces(text, size))
    if not parts:
        raise ValueError("text is empty: there is nothing to ask about")
    notes = ""
    for part, piece in enumerate(parts, 1):
        words = _FIRST if part == 1 else _NEXT
        notes = ask(words.format(task=task, notes=notes, part=part, parts=len(parts), piece=piece))
    return notes


def pieces(text: str, size: int) -> Iterator[str]:
    """The text cut into at most `size` characters each, at the end of a paragraph, a line, a sentence or a
    word where one lies in the piece's second half. Raises ValueError for a size below 1."""
    if size < 1:
        raise ValueError(f"size is {size}: give 1 character or more")
    while len(text) > size:
        found = ((text.rfind(end, size // 2, size), len(end)) for end in _ENDS)
        cut = next((start + length for start, length in found if start >= 0), size)
        yield text[:cut]
        text = text[cut:]
    if text:
        yield text
