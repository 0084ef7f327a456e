"""Several sequences laid end to end in one flat row of tokens: the only shape the network sees.

Made by the trainer (documents), the engine (prompts, single tokens) and tests; read by the kernels that mix
tokens. Invariant: tokens of one sequence never touch those of another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Packing:
    """`N` sequences in a row of `T` tokens.

    `lengths[n]` tokens of sequence n are in the row, at `starts[n]`; `contexts[n]` earlier ones are already
    in the caches. When serving, `pages [N, P]` are the KV pages of each sequence in order, `slots [N]` its
    state slot and `cells [T]` the place (page * page size + offset) of each new token's keys and values.
    """

    lengths: tuple[int, ...]
    contexts: tuple[int, ...]
    positions: Tensor
    pages: Tensor | None = None
    slots: Tensor | None = None
    cells: Tensor | None = None

    @property
    def starts(self) -> tuple[int, ...]:
        return tuple(accumulate(self.lengths, initial=0))[:-1]

    @property
    def total(self) -> int:
        return sum(self.lengths)

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
        device: torch.device | str = "cpu",
    ) -> Packing:
        """`lengths[n]` new tokens after `contexts[n]` cached ones, for sequences with pages and slots."""
        width = max(len(row) for row in pages)
        table = torch.tensor([[*row, *[0] * (width - len(row))] for row in pages], dtype=torch.long)
        positions = torch.cat([torch.arange(c, c + n) for n, c in zip(lengths, contexts, strict=True)])
        row_of = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        cells = table[row_of, positions // page_size] * page_size + positions % page_size
        return cls(
            tuple(lengths),
            tuple(contexts),
            positions.to(device),
            table.to(device),
            torch.tensor(slots, dtype=torch.long, device=device),
            cells.to(device),
        )
