"""Random programs of rows: sequences that take in pieces, draft tokens, and have some of the drafts accepted.

The same programs drive the ops and the whole network. `play` gives the packings; what the tokens are, and
what is right, is the caller's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st

from qnext.model.packing import Packing

DRAFTS, PAGE = 4, 8


@dataclass(frozen=True)
class Move:
    """What one sequence puts into a row: `certain` tokens, and `drafts` of which the first `accepted` turn
    out right; its states after so many tokens as `saves` says, fewer than `certain`, are wanted too."""

    sequence: int
    certain: int
    drafts: int = 0
    accepted: int = 0
    saves: tuple[int, ...] = ()

    @property
    def length(self) -> int:
        return self.certain + self.drafts


Program = list[list[Move]]
LENGTHS = [1, 1, 2, 4, 5, 12, 16, 17, 60, 64, 66, 130]


@st.composite
def moves(draw: Any, sequence: int) -> Move:
    """A decode row (1 + d tokens; now and then a few more), or a piece of a prompt."""
    decodes = draw(st.booleans())
    length = draw(st.sampled_from([1, 1, 1, 3, 9] if decodes else LENGTHS))
    drafts = draw(st.integers(0, DRAFTS)) if decodes else 0
    saves = draw(st.lists(st.integers(1, length - 1), max_size=2)) if length > 1 else []
    return Move(sequence, length, drafts, draw(st.integers(0, drafts)), tuple(saves))


@st.composite
def programs(draw: Any, most: int = 6) -> Program:
    """Up to 3 sequences, in up to `most` rows, not everybody in each."""
    everybody = range(draw(st.integers(1, 3)))
    found = []
    for _ in range(draw(st.integers(1, most))):
        present = draw(st.sets(st.sampled_from(everybody), min_size=1))
        order = draw(st.permutations(sorted(present)))
        found.append([draw(moves(sequence)) for sequence in order])
    return found


@dataclass(frozen=True)
class Turn:
    """A row of the program. `begins[i]` tokens of move i's sequence were committed before it; `saved` are
    (sequence, count of all its tokens, slot)."""

    packing: Packing
    moves: list[Move]
    begins: list[int]
    slots: list[int]
    saved: list[tuple[int, int, int]]


@dataclass(frozen=True)
class Layout:
    """Where a program's sequences have their pages and slots, in disorder among spare ones."""

    pages: dict[int, list[int]]
    slots: dict[int, int]
    save_slots: list[int]
    spare_slots: list[int]
    page_count: int
    slot_count: int

    @classmethod
    def of(cls, program: Program, seed: int, spare_pages: int = 2, spare_slots: int = 1) -> Layout:
        reach = committed(program)
        need = {n: -(-(count + DRAFTS) // PAGE) for n, count in reach.items()}
        saves = sum(len(move.saves) for row in program for move in row)
        rng = torch.Generator().manual_seed(seed)
        page_count, slot_count = sum(need.values()) + spare_pages, len(reach) + saves + spare_slots
        pages, slots = (torch.randperm(n, generator=rng).tolist() for n in (page_count, slot_count))
        return cls(
            {n: [pages.pop() for _ in range(count)] for n, count in need.items()},
            {n: slots.pop() for n in reach},
            [slots.pop() for _ in range(saves)],
            slots,
            page_count,
            slot_count,
        )


def committed(program: Program) -> dict[int, int]:
    """How many tokens each sequence has in the end."""
    found: dict[int, int] = {}
    for row in program:
        for move in row:
            found[move.sequence] = found.get(move.sequence, 0) + move.certain + move.accepted
    return found


def play(program: Program, layout: Layout) -> Iterator[Turn]:
    """The rows in turn, each after the last one's drafts were judged."""
    done, replays, free = dict.fromkeys(layout.slots, 0), dict.fromkeys(layout.slots, 0), [*layout.save_slots]
    for row in program:
        names = [move.sequence for move in row]
        saves = [(i, count, free.pop()) for i, move in enumerate(row) for count in move.saves]
        begins = [done[n] for n in names]
        packing = Packing.cached(
            [move.length for move in row],
            begins,
            [layout.pages[n] for n in names],
            [layout.slots[n] for n in names],
            PAGE,
            drafts=[move.drafts for move in row],
            replays=[replays[n] for n in names],
            saves=saves,
        )
        saved = [(names[i], begins[i] + count, slot) for i, count, slot in saves]
        yield Turn(packing, row, begins, [layout.slots[n] for n in names], saved)
        for move in row:
            done[move.sequence] += move.certain + move.accepted
            replays[move.sequence] = move.accepted
