"""Products of fp32 matrices in a matrix unit: each number as the sum of two bf16, its high and its low part.

Called by the chunked delta rule where the level has a unit and answers need not be exact. Parts are rounded
to the nearest and low by low is left out, which costs some 2^-16 of a product. Invariant: a row's result
depends on that row alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from . import simd
from .jit import inline
from .shuffles import pair_bf16
from .unit import SIDE, dot_sums, load_sums, store_sums, zero_sums

LINE, LANES = 64, 16
DEPTH = 2 * SIDE  # of products: a multiple of this
WIDE = 4  # tiles of sums side by side


class Parts(NamedTuple):
    """A matrix in parts: where the high and the low ones are, and bytes from row to row."""

    high: int
    low: int
    pitch: int


@inline
def parts_at(base: int, rows: int, pitch: int) -> Parts:
    """High parts, then low ones: together 2 * rows * pitch bytes."""
    return Parts(base, base + rows * pitch, pitch)


@inline
def split_rows(rows: int, width: int, source: int, parts: Parts) -> None:
    """The left side of a product, [rows, width] without gaps; `parts.pitch` is 2 * width."""
    for i in range(rows):
        for c in range(0, width, 2 * LANES):
            at, to = source + 4 * (i * width + c), i * parts.pitch + 2 * c
            x, y = simd.load(at), simd.load(at + LINE)
            simd.store_bf16_pair(parts.high + to, x, y)
            x = x - simd.load_bf16(parts.high + to)
            y = y - simd.load_bf16(parts.high + to + LINE // 2)
            simd.store_bf16_pair(parts.low + to, x, y)


@inline
def split_pairs(rows: int, source: int, parts: Parts) -> None:
    """The right side: rows of `parts.pitch` bytes without gaps, two of them side by side in one of parts."""
    for i in range(0, rows, 2):
        for at in range(0, parts.pitch, LINE):
            here, to = source + i * parts.pitch + at, i // 2 * parts.pitch + at
            x, y = simd.load(here), simd.load(here + parts.pitch)
            pair = pair_bf16(x, y)
            simd.store_i32(parts.high + to, pair)
            x = x - simd.as_float(simd.shift_left(pair, 16))
            y = y - simd.as_float(simd.masked(pair, -65536))
            simd.store_i32(parts.low + to, pair_bf16(x, y))


def _adder(tiles: int) -> Callable[..., None]:
    """16 rows by so many tiles of columns, from row `i` and byte `at` of the right side on."""

    @inline
    def add(depth: int, left: Parts, right: Parts, i: int, at: int, fresh: bool, out: int) -> None:
        if fresh:
            zero_sums(tiles)
        else:
            load_sums(tiles, out, right.pitch)
        for k in range(0, depth, DEPTH):
            row, column = i * left.pitch + 2 * k, k // 2 * right.pitch + at
            dot_sums(tiles, left.high + row, left.pitch, right.high + column, right.pitch)
            dot_sums(tiles, left.high + row, left.pitch, right.low + column, right.pitch)
            dot_sums(tiles, left.low + row, left.pitch, right.high + column, right.pitch)
        store_sums(tiles, out, right.pitch)

    return add


_add_wide, _add_narrow = _adder(WIDE), _adder(1)


@inline
def add_product(rows: int, depth: int, left: Parts, right: Parts, fresh: bool, out: int) -> None:
    """Add products of 16, 32, .. rows to `out`, rows of `right.pitch` bytes without gaps; to nothing where it
    is `fresh`."""
    for i in range(0, rows, SIDE):
        at = np.int64(0)
        while at < right.pitch:
            to = out + i * right.pitch + at
            if at + WIDE * LINE <= right.pitch:
                _add_wide(depth, left, right, i, at, fresh, to)
                at += WIDE * LINE
            else:
                _add_narrow(depth, left, right, i, at, fresh, to)
                at += LINE
