"""Products of small fp32 matrices that lie in the nearest caches.

Called by the chunked delta rule. Matrices are row-major with pitches in bytes. Invariant: each sum runs over
the depth in order, so that a row's result does not depend on how many rows there are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import isa, simd
from .jit import inline

LINE, ROWS = 64, 8
WIDE, HIGH = (2, ROWS) if isa.many_registers() else (1, 4)  # vectors and rows whose sums stay in registers


def block(vectors: int) -> Callable[..., Any]:
    """Some rows by some vectors of the product, all sums in registers."""
    count = HIGH * vectors

    @inline
    def multiply(
        a: int, a_pitch: int, b: int, b_pitch: int, depth: int, scale: float, base: int, c: int, c_pitch: int
    ) -> None:
        sums, right = simd.registers_f32(count), simd.registers_f32(vectors)
        for r in range(HIGH):
            for s in range(vectors):
                sums[r * vectors + s] = simd.fill(0.0)
                if scale != 0:
                    sums[r * vectors + s] = simd.load(base + r * c_pitch + LINE * s) * simd.fill(scale)
        for k in range(depth):
            for s in range(vectors):
                right[s] = simd.load(b + k * b_pitch + LINE * s)
            for r in range(HIGH):
                left = simd.spread(a + r * a_pitch + 4 * k)
                for s in range(vectors):
                    sums[r * vectors + s] = simd.fma(left, right[s], sums[r * vectors + s])
        for r in range(HIGH):
            for s in range(vectors):
                simd.store(c + r * c_pitch + LINE * s, sums[r * vectors + s])

    return multiply


multiply_wide, multiply_narrow = block(WIDE), block(1)


@inline
def product(
    shape: tuple[int, int, int],
    a: tuple[int, int],
    b: tuple[int, int],
    scale: float,
    base: int,
    c: tuple[int, int],
) -> None:
    """C = scale base + A B for `shape` (rows, a multiple of 8; bytes of a row of C, a multiple of 64; depth);
    matrices are (address, pitch). `base` is laid out as C, and may be it. Where `scale` is 0 it is not read.
    """
    # Not as literals, for each of which it would all be compiled again.
    rows, size, depth = np.int64(shape[0]), np.int64(shape[1]), np.int64(shape[2])
    a_pitch, b_pitch, c_pitch = np.int64(a[1]), np.int64(b[1]), np.int64(c[1])
    at = np.int64(0)
    while at < size:
        wide = at + WIDE * LINE <= size
        for i in range(0, rows, HIGH):
            left, start, end = a[0] + i * a_pitch, base + i * c_pitch + at, c[0] + i * c_pitch + at
            if wide:
                multiply_wide(left, a_pitch, b[0] + at, b_pitch, depth, scale, start, end, c_pitch)
            else:
                multiply_narrow(left, a_pitch, b[0] + at, b_pitch, depth, scale, start, end, c_pitch)
        at += WIDE * LINE if wide else LINE
