"""A plan: what one step computes, and what is moved in memory before it, as plain data.

Made by `scheduler`, carried out by `runner`. Invariant: moves are carried out in their order, before the
forward; a page that was evicted may be written by a later move, never by an earlier one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from .cache import Checkpoint
from .sequence import Sequence


@dataclass(frozen=True)
class Clear:
    """Make a slot ready for a text from its first token on."""

    slot: int


@dataclass(frozen=True)
class Restore:
    """Bring a kept state to a slot, and copy the page that it ends in, since the sequence writes on there.
    Without `replays` the state is whole without its window."""

    slot: int
    state: tuple[int, ...]
    page: tuple[int, int] | None
    replays: int


@dataclass(frozen=True)
class Fetch:
    """Bring a checkpoint of the second tier to a sequence's own pages and slot."""

    sequence: Sequence
    checkpoint: Checkpoint


Move = Clear | Restore | Fetch


class Piece(NamedTuple):
    """The next `length` tokens of a sequence, then `drafts`. `saves` are (length of the whole text, spare
    slot): states to be copied on the way."""

    sequence: Sequence
    length: int
    drafts: tuple[int, ...] = ()
    saves: tuple[tuple[int, int], ...] = ()


@dataclass
class Plan:
    """`moves` first, then one forward over the `pieces`."""

    moves: list[Move] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
