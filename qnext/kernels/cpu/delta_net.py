"""The half of a linear layer between its projections, in one call: short convolution, gates, delta rule and
gated norm.

Called by the CPU decoder. The work is cut by sequence and key head (with the value heads that share it), each
of which owns its columns of the row, its channels of the convolution's state and its heads of the delta
state. Invariant: what a sequence gets does not depend on what lies beside it in the row.
Legend as in `ops`: T tokens, N sequences, K/V key and value heads of widths C and U, S slots, D drafts, W
taps.
"""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from ..ops import DeltaCache, Row
from .delta_piece import Job, Shape, desk_size, pieces
from .jit import Task
from .workspace import Workspace


class DeltaNetWeights(NamedTuple):
    """Of one layer, all fp32; `taps` [W, K C + K C + V U] is the convolution's weight transposed."""

    taps: Tensor
    A_log: Tensor
    dt_bias: Tensor
    norm: Tensor
    eps: float
    key_heads: int
    key_width: int
    value_heads: int
    value_width: int

    @classmethod
    def of(
        cls, conv1d_CW: Tensor, A_log: Tensor, dt_bias: Tensor, norm: Tensor, eps: float, *heads: int
    ) -> DeltaNetWeights:
        """From the layer's parameters and (key heads, key width, value heads, value width)."""
        taps = conv1d_CW.detach().float().T.contiguous()
        rest = [x.detach().float().contiguous() for x in (A_log, dt_bias, norm)]
        return cls(taps, rest[0], rest[1], rest[2], eps, *heads)


def supported(key_heads: int, key_width: int, value_heads: int, value_width: int, taps: int) -> bool:
    """Whether these kernels can do a layer of this shape; the reference can do all."""
    return key_width % 16 == 0 == value_width % 16 and value_heads % key_heads == 0 and taps >= 2


task = Task(pieces)


def delta_net(
    projected_TX: Tensor,
    gates_T2V: Tensor,
    weights: DeltaNetWeights,
    row: Row,
    conv_SCW: Tensor | None,
    cache: DeltaCache | None,
    out_TX: Tensor,
    workspace: Workspace | None = None,
) -> Tensor:
    """The normed, gated output [T, V U] of rows (q | k | v | z) and (b | a), all fp32, written to `out_TX`.

    `conv_SCW` and `cache`: as for `Ops.causal_conv` and `Ops.gated_delta_rule`. Both or none.
    """
    shape = Shape(*weights[5:], len(weights.taps))
    tokens = projected_TX.shape[0]
    values = shape.value_heads * shape.value_width
    _check(projected_TX, (tokens, weights.taps.shape[1] + values), torch.float32, rows=True)
    _check(gates_T2V, (tokens, 2 * shape.value_heads), torch.float32, rows=True)
    _check(out_TX, (tokens, values), torch.float32, rows=True)
    table = row.table
    assert table.dtype == np.int64 and table.flags.c_contiguous and table.shape[1] == 6
    saves = np.array(row.saves if cache is not None else (), np.int64).reshape(-1, 3)
    threads = min(numba.get_num_threads(), len(table) * shape.key_heads)
    size = desk_size(shape)
    numbers = (
        *shape,
        int(np.float32(weights.eps).view(np.int32)),
        len(table),
        table.ctypes.data,
        len(saves),
        saves.ctypes.data,
        size,
        (workspace or Workspace()).address("delta_net", threads * size),
        projected_TX.data_ptr(),
        4 * projected_TX.stride(0),
        gates_T2V.data_ptr(),
        4 * gates_T2V.stride(0),
        out_TX.data_ptr(),
        4 * out_TX.stride(0),
        weights.taps.data_ptr(),
        weights.A_log.data_ptr(),
        weights.dt_bias.data_ptr(),
        weights.norm.data_ptr(),
        *_caches(shape, conv_SCW, cache),
    )
    task.run(Job(*numbers), threads)
    return out_TX


def _caches(shape: Shape, conv_SCW: Tensor | None, cache: DeltaCache | None) -> tuple[int, ...]:
    """Where the caches are, checked; zeros without them."""
    assert (conv_SCW is None) == (cache is None), "the convolution's state and the delta cache come together"
    if conv_SCW is None or cache is None:
        return (0,) * 9
    keys, key, values, value, taps = shape
    slots, window = cache.gates.shape[:2]
    assert conv_SCW.shape[2] >= taps - 1
    _check(conv_SCW, (slots, 2 * keys * key + values * value, conv_SCW.shape[2]))
    _check(cache.state, (slots, values, key, value), torch.float32)
    _check(cache.k, (slots, window, keys, key))
    _check(cache.v, (slots, window, values, value), cache.k.dtype)
    _check(cache.gates, (slots, window, 2, values), torch.float32)
    return (
        conv_SCW.data_ptr(),
        conv_SCW.shape[2],
        int(conv_SCW.dtype == torch.bfloat16),
        cache.state.data_ptr(),
        cache.k.data_ptr(),
        cache.v.data_ptr(),
        cache.gates.data_ptr(),
        window,
        int(cache.k.dtype == torch.bfloat16),
    )


def _check(x: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None, rows: bool = False) -> None:
    """Rows may lie apart if `rows`; without a dtype, fp32 and bf16 will do."""
    assert x.shape == shape and x.device.type == "cpu", (x.shape, shape, x.device)
    assert x.dtype == dtype or (dtype is None and x.dtype in (torch.float32, torch.bfloat16)), x.dtype
    assert x.stride(-1) == 1 if rows else x.is_contiguous(), x.stride()
