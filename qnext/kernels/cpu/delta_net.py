"""The half of a linear layer between its projections, in one call: short convolution, gates, delta rule and
gated norm.

Called by the CPU decoder. The work is cut by sequence and key head (with the value heads that share it), each
of which owns its columns of the row, its channels of the convolution's state and its heads of the delta
state. Invariant: what a sequence gets does not depend on what lies beside it in the row.
Legend as in `ops`: T tokens, N sequences, K/V key and value heads of widths C and U, S slots, D drafts, W
taps.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple
from weakref import ref

import numba
import numpy as np
import torch
from torch import Tensor

from ..ops import DeltaCache, Row
from .delta_job import Shape, desk_size
from .delta_piece import pieces
from .task import Task
from .workspace import Workspace


class CheckedCaches:
    """The caches that a layer was last called with, their numbers for a `Job` if they were found right. (They
    are the same at every step, and looking at them again costs as much as a tenth of the kernel.)"""

    def __init__(self) -> None:
        self._seen: tuple[ref[Tensor], ...] = ()
        self._numbers: tuple[int, ...] = ()

    def numbers(self, shape: Shape, conv_SWC: Tensor | None, cache: DeltaCache | None) -> tuple[int, ...]:
        if conv_SWC is None or cache is None:
            assert conv_SWC is None and cache is None, "both caches or none"
            return NO_CACHES
        tensors = (conv_SWC, *cache)
        if not self._seen or any([seen() is not x for seen, x in zip(self._seen, tensors, strict=True)]):
            self._numbers = _numbers(shape, conv_SWC, cache)
            self._seen = tuple(map(ref, tensors))
        return self._numbers


class DeltaNetWeights(NamedTuple):
    """Of one layer: make it by `of`, once. `taps` [K, W, C + C + V / K U] is the convolution's weight by key
    heads, the others are [V], [V] and [U], all fp32 without gaps."""

    taps: Tensor
    A_log: Tensor
    dt_bias: Tensor
    norm: Tensor
    shape: Shape
    numbers: tuple[int, ...]  # the first of a `Job`
    caches: CheckedCaches

    @classmethod
    def of(
        cls, conv1d_CW: Tensor, A_log: Tensor, dt_bias: Tensor, norm: Tensor, eps: float, *heads: int
    ) -> DeltaNetWeights:
        """From the layer's parameters and (key heads, key width, value heads, value width)."""
        shape = Shape._make((*heads, conv1d_CW.shape[1]))
        if not supported(*shape):
            raise ValueError(f"{shape}: widths are no multiples of 16: use the reference")
        keys = shape.key_heads * shape.key_width
        parts = conv1d_CW.detach().float().split((keys, keys, shape.value_heads * shape.value_width))
        taps = torch.cat([part.unflatten(0, (shape.key_heads, -1)) for part in parts], 1).mT.contiguous()
        rest = [x.detach().float().contiguous() for x in (A_log, dt_bias, norm)]
        assert [x.numel() for x in rest] == [shape.value_heads, shape.value_heads, shape.value_width]
        assert all(x.is_cpu for x in (taps, *rest))
        bits = int(np.float32(eps).view(np.int32))
        addresses = [x.data_ptr() for x in (taps, *rest)]
        return cls(taps, rest[0], rest[1], rest[2], shape, (*shape, bits, *addresses), CheckedCaches())


def supported(key_heads: int, key_width: int, value_heads: int, value_width: int, taps: int) -> bool:
    """Whether these kernels can do a layer of this shape; the reference can do all."""
    return key_width % 16 == 0 == value_width % 16 and value_heads % key_heads == 0 and taps >= 2


task = Task(pieces)
MOST = numba.config.NUMBA_NUM_THREADS
KINDS = {torch.float32, torch.bfloat16}
NO_CACHES = (0,) * 9
INT64 = np.dtype(np.int64)
NO_SAVES = np.empty((0, 3), np.int64)


def delta_net(
    projected_TX: Tensor,
    gates_T2V: Tensor,
    weights: DeltaNetWeights,
    row: Row,
    conv_SWC: Tensor | None,
    cache: DeltaCache | None,
    out_TX: Tensor,
    workspace: Workspace | None = None,
    *,
    exact: bool,
) -> Tensor:
    """The normed, gated output [T, V U] of rows (q | k | v | z) and (b | a), all fp32, written to `out_TX`.
    Without `exact` products are within 2^-16 where there is a matrix unit, and exact where there is none.

    `conv_SWC` and `cache`: as for `Ops.causal_conv` and `Ops.gated_delta_rule`. Both or none.
    """
    shape, tokens, table = weights.shape, projected_TX.shape[0], row.table
    values, size = shape.value_heads * shape.value_width, desk_size(shape)
    workspace = workspace or Workspace()
    assert table.dtype == INT64 and table.shape == (len(row.lengths), 6) and sum(row.lengths) == tokens
    saves = row.save_table if cache is not None else NO_SAVES
    assert saves.dtype == INT64 and table.flags.c_contiguous and saves.flags.c_contiguous
    job = array(
        "q",
        (
            *weights.numbers,
            *weights.caches.numbers(shape, conv_SWC, cache),
            projected_TX.data_ptr(),
            _pitch(projected_TX, (tokens, shape.channels + values)),
            gates_T2V.data_ptr(),
            _pitch(gates_T2V, (tokens, 2 * shape.value_heads)),
            out_TX.data_ptr(),
            _pitch(out_TX, (tokens, values)),
            workspace.address("delta_net", MOST * size),
            size,
            len(row.lengths),
            len(saves),
            table.ctypes.data,
            saves.ctypes.data,
            exact,
        ),
    )
    workspace.run(task, job, len(row.lengths) * shape.key_heads)
    return out_TX


def _numbers(shape: Shape, conv_SWC: Tensor, cache: DeltaCache) -> tuple[int, ...]:
    """Where the caches are, checked."""
    keys, key, values, value, taps = shape
    state, k, v, gates = cache
    (slots, window), rows = gates.shape[:2], conv_SWC.shape[1]
    assert rows >= taps - 1 + window and conv_SWC.shape == (slots, rows, shape.channels)
    assert state.shape == (slots, values, key, value) and gates.shape == (slots, window, 2, values)
    assert k.shape == (slots, window, keys, key) and v.shape == (slots, window, values, value)
    assert state.dtype is gates.dtype is torch.float32
    assert k.dtype is v.dtype and {k.dtype, conv_SWC.dtype} <= KINDS
    assert all(x.is_contiguous() and x.is_cpu for x in (conv_SWC, state, k, v, gates))
    half, window_half = conv_SWC.dtype is torch.bfloat16, k.dtype is torch.bfloat16
    places = (state.data_ptr(), k.data_ptr(), v.data_ptr(), gates.data_ptr())
    return (conv_SWC.data_ptr(), rows, half, *places, window, window_half)


def _pitch(x: Tensor, shape: tuple[int, int]) -> int:
    """Bytes from row to row, which may lie apart."""
    pitch, step = x.stride()
    assert x.shape == shape and step == 1 and x.dtype is torch.float32 and x.is_cpu, (x.shape, shape, x.dtype)
    return 4 * pitch
