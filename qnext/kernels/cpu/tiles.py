"""Products of codes in tiles of 16 by 16: what a matrix unit (AMX) does, for sixteen tokens at a time.

Called by `dot` where the level has it. Invariant: sums of codes are exact, and scaled in the order of
`dot.codes`, so that a token's result is the same to the bit in either. Where there is no unit, tests have one
in software.

A tile of inputs is 16 tokens by 64 codes, read in place, and after the last token whatever lies there: see
`SPARE`. A tile of weights is 64 columns of 16 rows, four columns of each row side by side, unfolded on a desk
to signed bytes. So many are unfolded at a time as stay in the first cache while all tokens pass by. The unit
works a pair of groups ahead of the vectors that scale its sums: a sum is ready long after it was asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import literally

from .jit import inline, pasted
from .simd import (
    fill,
    fma,
    less,
    load,
    load_bf16,
    load_i32,
    masked,
    prefetch_l2,
    registers_f32,
    shift_right,
    spread,
    store,
    store_i32,
    to_float,
)
from .unit import SIDE, UNIT, tile_dot, tile_load, tile_store, tile_zero

DEPTH = 64  # codes of each of a tile's tokens and rows
TILE = SIDE * DEPTH  # bytes
FEWEST = 5  # tokens: fewer are sooner done by vectors
SPARE = SIDE - 1 if UNIT else 0  # rows of inputs, and their scales, that may be read after the last
HELD, SUMS = 16, 4  # tiles of weights that are unfolded at a time, and of sums
DESK = (HELD + SUMS) * TILE  # bytes that a thread needs
AHEAD = 8192  # bytes of weights that are asked for before they are read


def tiled(tokens: int) -> bool:
    """Whether products of so many tokens are done in tiles."""
    return UNIT and tokens >= FEWEST


def _by_unit(lane: int) -> Callable[..., Any]:
    """In one of two sets of tiles, so that one need not wait for the other."""
    sums, left, right = lane, 2 + lane, 4 + lane

    @pasted
    def product(rows: int, step: int, weights: int, count: int, out: int) -> None:
        tile_zero(sums)
        for k in range(count):
            tile_load(left, rows + DEPTH * k, step)
            tile_load(right, weights + TILE * k, 64)
            tile_dot(sums, left, right)
        tile_store(sums, out, 64)

    return product


even, odd = _by_unit(0), _by_unit(1)
"""Sums [16, 16] of `count` pairs of tiles: tokens at `rows`, `step` bytes apart, by weights side by side."""


@inline
def unfold(bits, data, count, to):  # type: ignore[no-untyped-def]
    """So many tiles of packed weights as signed bytes."""
    bits = literally(bits)
    for i in range(count * SIDE * bits // 8):
        line = load_i32(data + 64 * i)
        prefetch_l2(data + 64 * i + AHEAD)
        if bits == 4:
            store_i32(to + 128 * i, less(masked(line, 0x0F0F0F0F), 8))
            store_i32(to + 128 * i + 64, less(masked(shift_right(line, 4), 0x0F0F0F0F), 8))
        else:
            store_i32(to + 64 * i, less(line, -128))


@inline
def tiles(bits, matrix, block, x, first, last, out, step, desk):  # type: ignore[no-untyped-def]
    """As many sixteens of tokens as there are, and one of fewer if these are not too few, as `dot.dot` -> the
    first token that is left. None where groups are not whole tiles."""
    bits = literally(bits)
    data, scales, size, groups, group = matrix
    width, rows, row_scales, _ = x
    count, left = group // DEPTH, (last - first) % SIDE
    whole = last if left >= FEWEST else last - left
    if group % DEPTH or count > HELD or whole == first:
        return first
    data, scales, sums = data + block * size, scales + block * groups * 32, desk + HELD * TILE
    many, acc = HELD // count, registers_f32(SIDE)
    for g in range(0, groups, many):
        here = min(many, groups - g)
        unfold(bits, data + g * count * TILE * bits // 8, here * count, desk)
        for t in range(first, whole, SIDE):
            to, own = out + (t - first) * step, min(SIDE, last - t)
            row, scale_at = rows + t * width + g * group, row_scales + 4 * (t * groups + g)
            for i in range(SIDE):
                acc[i] = fill(np.float32(0))
            if g > 0:
                for i in range(SIDE):
                    acc[i] = load(to + min(i, own - 1) * step)
            for h in range(0, here + 2, 2):
                if h < here:
                    at = sums + h % SUMS * TILE
                    even(row + h * group, width, desk + h * count * TILE, count, at)
                if h + 1 < here:
                    at = sums + (h + 1) % SUMS * TILE
                    odd(row + (h + 1) * group, width, desk + (h + 1) * count * TILE, count, at)
                for done in range(max(h - 2, 0), min(h, here)):
                    scale, at = load_bf16(scales + 32 * (g + done)), sums + done % SUMS * TILE
                    for i in range(SIDE):
                        factor = scale * spread(scale_at + 4 * (i * groups + done))
                        acc[i] = fma(to_float(load_i32(at + 64 * i)), factor, acc[i])
            for i in range(SIDE - 1, -1, -1):  # what is no token's goes to the last one's place, before it
                store(to + min(i, own - 1) * step, acc[i])
    return whole
