"""Several sequences laid end to end in one flat row of tokens: the only shape the network sees.

Made by the trainer (documents), the engine (prompts, single tokens, drafted windows) and tests; read by the
kernels that mix tokens. Invariant: tokens of one sequence never touch those of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Window:
    """The row with accepted drafts put before the tokens they precede; see `kernels.ops.Window`."""

    lengths: tuple[int, ...]
    replayed: tuple[Tensor, Tensor]
    index: Tensor
    own: Tensor
    drafted: tuple[tuple[Tensor, Tensor], Tensor]


class Arrays(NamedTuple):
    """The arrays of a `Packing`: int64, and bool in `stretched`."""

    positions: np.ndarray
    pages: np.ndarray | None = None
    slots: np.ndarray | None = None
    cells: np.ndarray | None = None
    stretched: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Packing:
    """`N` sequences in a row of `T` tokens.

    `lengths[n]` tokens of sequence n are in the row, at `starts[n]`; `contexts[n]` earlier ones are already
    in the caches. When serving, `pages [N, P]` are the KV pages of each sequence in order, `slots [N]` its
    state slot and `cells [T]` the place (page * page size + offset) of each new token's keys and values; the
    `first` cells of each sequence are empty. Recurrent states leave out the last `drafts[n]` tokens, and take
    in the first `replays[n]` of those that the last row left out; `saves` (sequence, count, slot) asks for a
    copy after so many tokens. `stretched [T]` marks tokens whose positions YaRN stretches; without it all
    are, if the model has YaRN. All these are `arrays`; tensors of them are made when first asked for,
    on the `device`.
    """

    lengths: tuple[int, ...]
    contexts: tuple[int, ...]
    arrays: Arrays
    first: int = 0
    drafts: tuple[int, ...] = ()
    replays: tuple[int, ...] = ()
    saves: tuple[tuple[int, int, int], ...] = ()
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        for name in ("drafts", "replays"):
            if not getattr(self, name):
                object.__setattr__(self, name, (0,) * len(self.lengths))

    @cached_property
    def positions(self) -> Tensor:
        return torch.from_numpy(self.arrays.positions).to(self.device)

    @cached_property
    def pages(self) -> Tensor | None:
        return self._tensor(self.arrays.pages)

    @cached_property
    def slots(self) -> Tensor | None:
        return self._tensor(self.arrays.slots)

    @cached_property
    def cells(self) -> Tensor | None:
        return self._tensor(self.arrays.cells)

    @cached_property
    def stretched(self) -> Tensor | None:
        return self._tensor(self.arrays.stretched)

    def _tensor(self, array: np.ndarray | None) -> Tensor | None:
        return None if array is None else torch.from_numpy(array).to(self.device)

    @cached_property
    def starts(self) -> tuple[int, ...]:
        return tuple(accumulate(self.lengths, initial=0))[:-1]

    @property
    def total(self) -> int:
        return sum(self.lengths)

    @cached_property
    def table(self) -> np.ndarray:
        """What compiled kernels read [N, 6]: start, length, context, slot (-1: none), drafts, replays."""
        known = self.arrays.slots
        slots = [-1] * len(self.lengths) if known is None else known.tolist()
        columns = (self.starts, self.lengths, self.contexts, slots, self.drafts, self.replays)
        return np.ascontiguousarray(np.asarray(columns, np.int64).T)

    @cached_property
    def save_table(self) -> np.ndarray:
        """`saves` as compiled kernels read them [., 3]."""
        return np.asarray(self.saves, np.int64).reshape(-1, 3)

    @cached_property
    def window(self) -> Window | None:
        """How drafts and replays lie in the caches; None where there are none."""
        if not any(self.drafts) and not any(self.replays):
            return None
        assert self.arrays.slots is not None
        device, slots = self.device, self.arrays.slots.tolist()
        total = self.total
        replayed: list[tuple[int, int]] = []
        drafted: list[tuple[int, int]] = []
        index: list[int] = []
        own: list[int] = []
        rows: list[int] = []
        for n, (start, length) in enumerate(zip(self.starts, self.lengths, strict=True)):
            index += range(total + len(replayed), total + len(replayed) + self.replays[n])
            replayed += ((slots[n], place) for place in range(self.replays[n]))
            own += range(len(index), len(index) + length)
            index += range(start, start + length)
            rows += range(start + length - self.drafts[n], start + length)
            drafted += ((slots[n], place) for place in range(self.drafts[n]))

        def pair(places: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
            columns = torch.tensor(places, dtype=torch.long, device=device).view(-1, 2).unbind(1)
            return columns[0], columns[1]

        return Window(
            tuple(length + count for length, count in zip(self.lengths, self.replays, strict=True)),
            pair(replayed),
            torch.tensor(index, device=device),
            torch.tensor(own, device=device),
            (pair(drafted), torch.tensor(rows, dtype=torch.long, device=device)),
        )

    def cut(self, most: int, unit: int) -> list[Packing]:
        """The same tokens in rows of no more than `most` (but that drafts are not parted), to be run one
        after the other on the same caches. Sequences are cut after whole `unit`s; `most` has some."""
        size = -(-self.total // -(-self.total // most) // unit) * unit  # rows are about as long
        rows: list[list[tuple[int, int, int]]] = [[]]  # sequence, and which of its tokens
        room = size
        for n, (length, drafts) in enumerate(zip(self.lengths, self.drafts, strict=True)):
            begin = 0
            while begin < length:
                end = begin + room // unit * unit
                if length <= begin + room or length - drafts < end:
                    end = length
                if end > begin:
                    rows[-1].append((n, begin, end))
                    begin, room = end, room - (end - begin)
                else:
                    rows.append([])
                    room = size
        return [self] if len(rows) == 1 else [self._part(row) for row in rows]

    def _part(self, row: list[tuple[int, int, int]]) -> Packing:
        """Of sequences that follow each other, some tokens of the first and the last."""
        first, (last, _, end), arrays = row[0][0], row[-1], self.arrays
        tokens = slice(self.starts[first] + row[0][1], self.starts[last] + end)
        held = slice(first, last + 1)
        others = zip(arrays[1:], (held, held, tokens, tokens), strict=True)
        return replace(
            self,
            lengths=tuple(end - begin for _, begin, end in row),
            contexts=tuple(self.contexts[n] + begin for n, begin, _ in row),
            arrays=Arrays(
                arrays.positions[tokens], *(None if each is None else each[own] for each, own in others)
            ),
            drafts=tuple(self.drafts[n] if end == self.lengths[n] else 0 for n, _, end in row),
            replays=tuple(0 if begin else self.replays[n] for n, begin, _ in row),
            saves=tuple(
                (n - first, count - begin, slot)
                for n, begin, end in row
                for sequence, count, slot in self.saves
                if sequence == n and begin < count <= end
            ),
        )

    @classmethod
    def of(cls, lengths: Sequence[int], *, device: torch.device | str = "cpu") -> Packing:
        """Whole sequences without a cache: training, scoring, the twin of every cached path."""
        lengths = tuple(lengths)
        if not lengths or min(lengths) < 1:
            raise ValueError(f"lengths is {lengths}: give one or more sequences of at least one token")
        positions = np.concatenate([np.arange(n) for n in lengths])
        return cls(lengths, (0,) * len(lengths), Arrays(positions), device=device)

    @classmethod
    def cached(
        cls,
        lengths: Sequence[int],
        contexts: Sequence[int],
        pages: Sequence[Sequence[int]],
        slots: Sequence[int],
        page_size: int,
        *,
        first: int = 0,
        drafts: Sequence[int] = (),
        replays: Sequence[int] = (),
        saves: Sequence[tuple[int, int, int]] = (),
        skipped: Sequence[int] = (),
        stretched: Sequence[bool] | None = None,
        device: torch.device | str = "cpu",
    ) -> Packing:
        """`lengths[n]` new tokens after `contexts[n]` cached ones, for sequences with pages and slots.

        `contexts` count cells: with `first` empty cells, a token's position is that much less; with
        `skipped[n]` cells before the pages, that much more.
        """
        # Lists, since this runs for every step: most rows are a few tokens, for which numpy takes longer.
        held = np.zeros((len(pages), max(map(len, pages))), np.int64)
        numbers: list[int] = []
        for length, context, before in zip(lengths, contexts, skipped or (0,) * len(pages), strict=True):
            numbers += range(before + context - first, before + context - first + length)
        total, none = len(numbers), (0,) * len(pages)
        for row, own, length, context in zip(held, pages, lengths, contexts, strict=True):
            row[: len(own)] = own
            for at in range(context, context + length):
                numbers.append(int(own[at // page_size]) * page_size + at % page_size)
        columns = (accumulate(lengths, initial=0), lengths, contexts, slots, drafts or none, replays or none)
        for facts in zip(*columns, strict=False):
            numbers += facts
        places = np.array(numbers, np.int64)
        table = places[2 * total :].reshape(-1, 6)

        long = None
        if stretched is not None:
            flags = zip(stretched, lengths, strict=True)
            long = np.array([each for each, length in flags for _ in range(length)], np.bool_)
        made = cls(
            tuple(lengths),
            tuple(contexts),
            Arrays(places[:total], held, table[:, 3], places[total : 2 * total], long),
            first,
            tuple(drafts or none),
            tuple(replays or none),
            tuple(saves),
            device,
        )
        made.__dict__["table"] = table  # a cached property: found as if it had been asked for before
        return made
