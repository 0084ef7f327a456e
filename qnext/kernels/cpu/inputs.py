"""Inputs of matrix products: rows that were perhaps normalised first, in fp32 and in codes of 8 bits.

Made by `linear.prepare`, read by every product of the same input. Invariant: a row depends on that row alone.
"""

from __future__ import annotations

import numpy as np
from numba import prange

from .jit import inline, kernel
from .simd import (
    absolute,
    fill,
    fma,
    larger,
    largest,
    load,
    nearest,
    poke,
    poke_i32,
    store,
    store_i8,
    to_int,
    total,
    total_i32,
)

ONE, ZERO = np.float32(1), np.float32(0)


@inline
def quantise_row(floats, columns, group, codes, scales, sums):  # type: ignore[no-untyped-def]
    """Round `columns` floats (whole groups) to codes of -127 to 127, with each group's scale and sum."""
    for g in range(columns // group):
        peak = fill(ZERO)
        for i in range(group // 16):
            peak = larger(peak, absolute(load(floats + 64 * i)))
        top = largest(peak)
        inverse = fill(np.float32(127) / top if top > ZERO else ZERO)
        together = to_int(fill(ZERO))
        for i in range(group // 16):
            rounded = to_int(nearest(load(floats + 64 * i) * inverse))
            store_i8(codes + 16 * i, rounded)
            together = together + rounded
        poke(scales + 4 * g, top / np.float32(127))
        poke_i32(sums + 4 * g, total_i32(together))
        floats += 4 * group
        codes += group


@inline
def normalise_row(x, columns, weight, eps, out):  # type: ignore[no-untyped-def]
    """Zero-centred RMS norm of one row of whole vectors."""
    squares = fill(ZERO)
    for i in range(columns // 16):
        value = load(x + 64 * i)
        squares = fma(value, value, squares)
    factor = fill(ONE / np.sqrt(total(squares) / np.float32(columns) + eps))
    for i in range(columns // 16):
        store(out + 64 * i, load(x + 64 * i) * factor * (load(weight + 64 * i) + fill(ONE)))


@kernel(parallel=True)
def prepare_rows(x, x_step, tokens, columns, width, weight, eps, group, floats, codes, scales, sums):  # type: ignore[no-untyped-def]
    """Rows of `x` (`x_step` bytes apart): normalised where there is a `weight` (an address, or 0), as fp32
    rows of `width` columns at `floats` (0: `x` as it is), and as codes at `codes` where `group` is not 0."""
    for t in prange(tokens):
        row = x + t * x_step
        if weight != 0:
            normalise_row(row, columns, weight, eps, floats + 4 * t * width)
        elif floats != 0:
            for i in range(columns // 16):
                store(floats + 4 * t * width + 64 * i, load(row + 64 * i))
        if floats != 0:
            row = floats + 4 * t * width
            for i in range(columns // 16, width // 16):
                store(row + 64 * i, fill(ZERO))
        if group != 0:
            groups = width // group
            at = 4 * t * groups
            quantise_row(row, width, group, codes + t * width, scales + at, sums + at)
