"""The parameters of a network seen as rows, the way `layout` addresses them.

Made by `weights` for one import or export. Invariant: the layout covers every row of every parameter, once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from . import fp8
from .layout import Entry
from .shard import BLOCK, DTYPES


class Rows:
    """Every parameter as `[rows, width]` (a vector has width 1), sharing its memory."""

    def __init__(self, parameters: Iterable[tuple[str, Tensor]], entries: Iterable[Entry]) -> None:
        self._views = {
            name: parameter.detach().view(-1, 1 if parameter.ndim == 1 else parameter.shape[-1])
            for name, parameter in parameters
        }
        covered: Counter[str] = Counter()
        for entry in entries:
            for part in entry.parts:
                covered[part.parameter] += entry.groups * part.rows
        assert covered == {name: len(view) for name, view in self._views.items()}, (
            "not the layout of this network"
        )

    def of(self, entry: Entry) -> Iterator[Tensor]:
        """The runs of rows `[n, width]` that make up a published tensor, in its order."""
        for run in entry.runs():
            yield self._views[run.parameter][run.first : run.first + run.rows]

    def dtype(self, entry: Entry) -> torch.dtype:
        """What a published tensor is stored in. Raises ValueError if the format has no place for it."""
        (dtype,) = {self._views[part.parameter].dtype for part in entry.parts}
        if dtype == fp8.DTYPE or dtype not in DTYPES.values():
            raise ValueError(
                f"{entry.name} is {dtype}: convert the model to bfloat16, float16 or float32 first"
            )
        return dtype


def blocks(rows: Tensor, itemsize: int) -> Iterator[Tensor]:
    """`rows` [n, width] in consecutive pieces, each of at most `BLOCK` bytes at `itemsize` bytes a number."""
    step = BLOCK // (rows.shape[1] * itemsize)
    assert step, "a row is longer than a block"
    for start in range(0, len(rows), step):
        yield rows[start : start + step]
