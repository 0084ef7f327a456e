"""Rounding weights into packed matrices, by the nearest code or by the scale with the least error.

Called by `model/quant`. One pass over a matrix: 16 rows are taken at a time, as they lie in a block, so that
every loop over them becomes one vector operation. Invariant: with the first divisor alone the bytes are those
of `packed.quantise`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import prange
from torch import Tensor

from ..packed import ROWS, ZERO, Packed
from .jit import inline, kernel
from .team import start_threads

# A group's scale is its largest number over one of these. The lowest code, -8, has no counterpart, so some
# groups do better on the other side, and many with a smaller scale, which cuts off the largest number.
CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
DIVISORS = {
    "int4": tuple(code / clip for clip in CLIPS for code in (-8, 7)),
    "int8": (127.0,),
}
REFITS = 2  # times the scale is made the best one for the codes found with it


def round_into(packed: Packed, floats: Tensor, table: Tensor, importance: Tensor | None = None) -> None:
    """Fill `packed` [M matrices of int4 or int8] with the rows of `floats` [R, K] that `table` names, in the
    order of the blocks, -1 for a row of zeros.

    With `importance` [M, K], what an error in each column costs, a group takes the scale with the least cost;
    without, the nearest codes are taken. A weight that is no finite number makes its scale NaN.
    """
    blocks = packed.data.flatten(0, -3)
    scales = packed.scales.flatten(0, -3)
    matrices, size = len(blocks) // packed.data.shape[-3], packed.data.shape[-3]
    assert packed.data.is_contiguous() and packed.scales.is_contiguous() and packed.kind in ZERO
    assert floats.shape[1] == packed.columns and table.dtype == torch.int64
    assert len(table) == ROWS * len(blocks) and int(table.max()) < len(floats) and int(table.min()) >= -1
    assert importance is None or importance.shape == (matrices, packed.columns)
    source = floats if floats.dtype == torch.bfloat16 else floats.float()
    divisors = DIVISORS[packed.kind] if importance is not None else DIVISORS[packed.kind][:1]
    costs = torch.ones(1, 1) if importance is None else importance.float().contiguous()
    start_threads()
    _round(
        source.contiguous().view(torch.uint16).numpy(),
        source.itemsize // 2,
        table.numpy(),
        blocks.view(torch.uint32).numpy(),
        scales.view(torch.uint16).numpy(),
        np.array(divisors, np.float32),
        costs.numpy(),
        size,
        packed.group,
        ZERO[packed.kind],
        0 if importance is None else REFITS,
    )


@inline
def _to_bf16(scales: Any, bits: Any) -> None:
    """Round 16 numbers to bf16, ties to even. `bits` are the same bytes as integers."""
    for n in range(16):
        bits[n] = (bits[n] + np.uint32(0x7FFF) + ((bits[n] >> np.uint32(16)) & np.uint32(1))) & np.uint32(
            0xFFFF0000
        )


@inline
def _code(x: Any, scale: Any, zero: Any) -> Any:
    step = np.float32(1) if scale == 0 else scale
    return min(max(np.rint(x / step), -zero), zero - np.float32(1))


@inline
def _judge(columns: Any, costs: Any, scales: Any, zero: Any, sums: Any) -> None:
    """For 16 scales: the cost of rounding with them, and the sums whose quotient is the best scale for the
    codes that they gave."""
    for n in range(16):
        sums[0, n] = sums[1, n] = sums[2, n] = np.float32(0)
    for c in range(len(columns)):
        cost = costs[c]
        for n in range(16):
            x = columns[c, n]
            code = _code(x, scales[n], zero)
            miss = x - code * scales[n]
            sums[0, n] += cost * miss * miss
            sums[1, n] += cost * x * code
            sums[2, n] += cost * code * code


@inline
def _keep_better(scales: Any, sums: Any, best: Any, kept: Any) -> None:
    for n in range(16):
        if sums[0, n] < kept[0, n]:
            best[n] = scales[n]
            for i in range(3):
                kept[i, n] = sums[i, n]


@inline
def _search(columns: Any, costs: Any, top: Any, divisors: Any, refits: Any, zero: Any, room: Any) -> None:
    """The best scale of each row for one group, into `room[0]`."""
    best, scales, kept, sums = room[0], room[1], room[2:5], room[5:8]
    bits = scales.view(np.uint32)
    for n in range(16):
        kept[0, n] = np.float32(np.inf)
        best[n] = top[n]
    for i in range(len(divisors) + refits):
        for n in range(16):
            if i < len(divisors):
                scales[n] = top[n] / divisors[i]
            else:
                scales[n] = kept[1, n] / kept[2, n] if kept[2, n] > 0 else best[n]
        _to_bf16(scales, bits)
        _judge(columns, costs, scales, zero, sums)
        _keep_better(scales, sums, best, kept)


@inline
def _gather(source: Any, halves: Any, rows: Any, first: Any, columns: Any) -> None:
    """Columns from `first` on of 16 rows, each column's numbers side by side; zeros beyond the last. A number
    is one half of 16 bits (bfloat16), or two, the low one first (float32)."""
    for n in range(16):
        row = rows[n]
        for c in range(len(columns)):
            high, low, at = np.uint32(0), np.uint32(0), halves * (first + c + 1) - 1
            if row >= 0 and at < source.shape[1]:
                high = np.uint32(source[row, at])
                if halves == 2:
                    low = np.uint32(source[row, at - 1])
            columns[c, n] = (high << np.uint32(16)) | low


@inline
def _top(columns: Any, top: Any, size: Any, fault: Any, keep_sign: Any) -> None:
    """Each row's largest number by size, the first where there are several; NaN if one is not finite."""
    for n in range(16):
        size[n], fault[n] = np.float32(-1), np.float32(0)
    for c in range(len(columns)):
        for n in range(16):
            x = columns[c, n]
            fault[n] += x - x
            if abs(x) > size[n]:
                size[n] = abs(x)
                top[n] = x
    for n in range(16):
        top[n] = (top[n] if keep_sign else size[n]) + fault[n]


@inline
def _write(columns: Any, scales: Any, zero: Any, lines: Any) -> None:
    """The codes of a group: a line has, for each row, 4 bytes; an int4 byte holds columns j and j + 4."""
    nibbles = zero == np.float32(8)
    step = 8 if nibbles else 4
    for i in range(len(columns) // step):
        for n in range(16):
            lines[i, n] = np.uint32(0)
        for c in range(step):
            shift = np.uint32(8 * (c % 4) + 4 * (c // 4))
            for n in range(16):
                code = _code(columns[i * step + c, n], scales[n], zero) + zero
                lines[i, n] |= np.uint32(np.int32(code)) << shift


@kernel(parallel=True)
def _round(
    source: Any,
    halves: Any,
    table: Any,
    data: Any,
    scales: Any,
    divisors: Any,
    importance: Any,
    size: Any,
    group: Any,
    zero: Any,
    refits: Any,
) -> None:
    """`data` [B, L, 16] and `scales` [B, W / G, 16] as unsigned integers, `size` blocks a matrix."""
    per = group // (4 if zero == 128 else 8)  # lines a group
    for block in prange(len(data)):
        bits, room = np.empty((group, 16), np.uint32), np.empty((8, 16), np.float32)
        top, costs = np.empty(16, np.float32), np.ones(group, np.float32)
        columns, best = bits.view(np.float32), room[0].view(np.uint32)
        rows = table[16 * block : 16 * block + 16]
        for g in range(scales.shape[1]):
            _gather(source, halves, rows, g * group, bits)
            _top(columns, top, room[1], room[2], zero == 8)
            if refits:
                for c in range(min(group, source.shape[1] // halves - g * group)):
                    costs[c] = importance[block // size, g * group + c]
                _search(columns, costs, top, divisors, refits, np.float32(zero), room)
            else:
                for n in range(16):
                    room[0, n] = top[n] / divisors[0]
                _to_bf16(room[0], best)
            for n in range(16):
                scales[block, g, n] = best[n] >> np.uint32(16)
            _write(columns, room[0], np.float32(zero), data[block, g * per : (g + 1) * per])
