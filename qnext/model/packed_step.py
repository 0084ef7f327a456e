"""The surroundings of a forward on packed weights, and its rows as inputs of products.

Made by `packed_network`, used by `packed_layers`. Invariant: all that kernels are told of lies in the
workspace, the weights and the caches, so that calls of a step that was laid down can be made again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qnext.kernels.cpu.delta_chunk import CHUNK
from qnext.kernels.cpu.inputs import Inputs
from qnext.kernels.cpu.linear import Matrix, linear, normalise
from qnext.kernels.cpu.workspace import Workspace

from .layers import Routing
from .packing import Arrays, Packing

PIECE = 512  # tokens


@dataclass(frozen=True, eq=False)
class PackedStep:
    """One forward's surroundings: see `layers.Step`; `embedded` [T, H] fp32 are the rows of its token ids.
    With `coded`, inputs of quantised matrices are rounded to 8 bits; else all products are exact. `cut`
    allows that mixers take the row piece by piece."""

    packing: Packing
    embedded: Tensor
    rotary: tuple[Tensor, Tensor]
    workspace: Workspace
    coded: bool
    routing: Routing | None = None
    cut: bool = False

    @cached_property
    def pieces(self) -> list[tuple[slice, PackedStep]]:
        """What mixers take at a time, and where it is in the row: little enough that what lies between their
        products stays small, and near, while a product is still worth the reading of its weights."""
        if not self.cut or len(self.embedded) <= PIECE:
            return [(slice(len(self.embedded)), self)]
        rows = self.packing.cut(PIECE, CHUNK)
        ends = list(accumulate((row.total for row in rows), initial=0))
        spans = [slice(*span) for span in pairwise(ends)]
        cos, sin = self.rotary
        return [
            (span, replace(self, packing=row, embedded=self.embedded[span], rotary=(cos[span], sin[span])))
            for span, row in zip(spans, rows, strict=True)
        ]

    def product(self, inputs: Rows, weight: Matrix, out: str | Tensor, add: Tensor | None = None) -> Tensor:
        """`inputs @ weight.T` (+ `add`) in `out`, or a buffer of that name -> [T, rows of whole blocks]."""
        if isinstance(out, str):
            out = self.workspace.take(out, (len(inputs.x), weight.columns), torch.float32)
        return linear(inputs.ready(weight), weight, out, add=add)

    def normed(self, x_TH: Tensor, norm: Tensor, eps: float, out_TH: Tensor | None = None) -> Tensor:
        """Rows normalised, in `out` or where rows are between the halves of a layer."""
        out = self.between(x_TH) if out_TH is None else out_TH
        return normalise(x_TH, norm, eps, out, self.workspace)

    def between(self, x_TH: Tensor) -> Tensor:
        """Room for such rows between the halves of a layer."""
        return self.workspace.take("half", tuple(x_TH.shape), torch.float32)

    def rows(self, x_TH: Tensor, norm: Tensor | None = None, eps: float = 0.0) -> Rows:
        return Rows(x_TH, self.workspace, self.coded, norm, eps)


class Rows:
    """Rows [T, H] that several matrices take as input, each as it wants them. Where one wants codes, ask for
    it first: the others then share what is made for it."""

    def __init__(
        self, x_TH: Tensor, workspace: Workspace, coded: bool, norm: Tensor | None = None, eps: float = 0.0
    ) -> None:
        self.x, self._workspace, self._coded, self._norm, self._eps = x_TH, workspace, coded, norm, eps
        self._made: dict[int, Inputs] = {}

    def ready(self, weight: Matrix) -> Inputs:
        """The rows as this matrix wants them; the first product that reads them makes them."""
        group = weight.group if self._coded and weight.bits < 16 else 0
        found = self._made.get(weight.width)
        if found is None or group not in (0, found.group):
            name = f"rows {len(self._made)}"
            found = Inputs(
                self.x, weight.width, group, self._workspace, norm=self._norm, eps=self._eps, name=name
            )
            self._made[weight.width] = found
        return found


FEW = 64  # pages of a sequence that there is always room for
NO_SAVES = torch.empty(0, 3, dtype=torch.int64)


class Places(NamedTuple):
    """Where the arrays of a packing lie in the workspace."""

    positions: Tensor
    pages: Tensor
    cells: Tensor
    table: Tensor
    save_table: Tensor
    stretched: Tensor | None


def lay_down(packing: Packing, workspace: Workspace) -> Places:
    """Put the arrays of a packing into the workspace, where those of the last one of these sizes lay. Pages
    have room for many, and for up to twice as many, so that a sequence rarely changes the sizes."""
    arrays, pages = packing.arrays, packing.arrays.pages
    assert pages is not None and arrays.cells is not None
    wide = np.zeros((len(pages), max(FEW, 1 << (pages.shape[1] - 1).bit_length())), np.int64)
    wide[:, : pages.shape[1]] = pages
    stretched = arrays.stretched
    return Places(
        workspace.lay("positions", arrays.positions),
        workspace.lay("pages", wide),
        workspace.lay("cells", arrays.cells),
        workspace.lay("table", packing.table),
        workspace.lay("save_table", packing.save_table) if packing.saves else NO_SAVES,
        None if stretched is None else workspace.lay("stretched", stretched.astype(np.int64)),
    )


def laid(packing: Packing, places: Places) -> Packing:
    """The same packing, of arrays that lie in the workspace."""
    positions, pages, cells, table, saves = (each.numpy() for each in places[:5])
    stretched = None if places.stretched is None else places.stretched.numpy()
    found = replace(packing, arrays=Arrays(positions, pages, packing.arrays.slots, cells, stretched))
    # cached properties: found as if they had been asked for before
    found.__dict__["table"], found.__dict__["save_table"] = table, saves
    return found
