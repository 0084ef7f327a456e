"""Several sequences laid end to end in one flat row of tokens: the only shape the network sees.

Made by the trainer (documents), the engine (prompts, single tokens, drafted windows) and tests; read by the
kernels that mix tokens. Invariant: tokens of one sequence never touch those of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

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


@dataclass(frozen=True, eq=False)
class Packing:
    """`N` sequences in a row of `T` tokens.

    `lengths[n]` tokens of sequence n are in the row, at `starts[n]`; `contexts[n]` earlier ones are already
    in the caches. When serving, `pages [N, P]` are the KV pages of each sequence in order, `slots [N]` its
    state slot and `cells [T]` the place (page * page size + offset) of each new token's keys and values; the
    `first` cells of each sequence are empty. Recurrent states leave out the last `drafts[n]` tokens, and take
    in the first `replays[n]` of those that the last row left out; `saves` (sequence, count, slot) asks for a
    copy after so many tokens. `stretched [T]` marks tokens whose positions YaRN stretches; without it all
    are, if the model has YaRN.
    """

    lengths: tuple[int, ...]
    contexts: tuple[int, ...]
    positions: Tensor
    pages: Tensor | None = None
    slots: Tensor | None = None
    cells: Tensor | None = None
    first: int = 0
    drafts: tuple[int, ...] = ()
    replays: tuple[int, ...] = ()
    saves: tuple[tuple[int, int, int], ...] = ()
    stretched: Tensor | None = None

    def __post_init__(self) -> None:
        for name in ("drafts", "replays"):
            object.__setattr__(self, name, getattr(self, name) or (0,) * len(self.lengths))

    @cached_property
    def starts(self) -> tuple[int, ...]:
        return tuple(accumulate(self.lengths, initial=0))[:-1]

    @property
    def total(self) -> int:
        return sum(self.lengths)

    @cached_property
    def table(self) -> np.ndarray:
        """What compiled kernels read [N, 6]: start, length, context, slot (-1: none), drafts, replays."""
        slots = [-1] * len(self.lengths) if self.slots is None else self.slots.tolist()
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
        assert self.slots is not None
        device, slots = self.slots.device, self.slots.tolist()
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

    @classmethod
    def of(cls, lengths: Sequence[int], *, device: torch.device | str = "cpu") -> Packing:
        """Whole sequences without a cache: training, scoring, the twin of every cached path."""
        lengths = tuple(lengths)
        if not lengths or min(lengths) < 1:
            raise ValueError(f"lengths is {lengths}: give one or more sequences of at least one token")
        positions = torch.cat([torch.arange(n) for n in lengths]).to(device)
        return cls(lengths, (0,) * len(lengths), positions)

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
        stretched: Sequence[bool] | None = None,
        device: torch.device | str = "cpu",
    ) -> Packing:
        """`lengths[n]` new tokens after `contexts[n]` cached ones, for sequences with pages and slots.

        `contexts` count cells: with `first` empty cells, a token's position is that much less.
        """
        # Lists, since this runs for every step: most rows are a few tokens, for which numpy takes longer.
        table = np.zeros((len(pages), max(map(len, pages))), np.int64)
        positions: list[int] = []
        cells: list[int] = []
        for row, held, length, context in zip(table, pages, lengths, contexts, strict=True):
            row[: len(held)] = held
            positions += range(context - first, context - first + length)
            cells += [
                held[at // page_size] * page_size + at % page_size for at in range(context, context + length)
            ]
        long = None
        if stretched is not None:
            long = [each for each, length in zip(stretched, lengths, strict=True) for _ in range(length)]

        def tensor(values: object, kind: type = np.int64) -> Tensor:
            return torch.from_numpy(np.asarray(values, kind)).to(device)

        return cls(
            tuple(lengths),
            tuple(contexts),
            tensor(positions),
            tensor(table),
            tensor(slots),
            tensor(cells),
            first,
            tuple(drafts),
            tuple(replays),
            tuple(saves),
            None if long is None else tensor(long, np.bool_),
        )
