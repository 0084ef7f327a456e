"""The exponential and the functions made of it, on vectors of 16 numbers.

Used by every kernel that has a nonlinearity. Invariant: within 4e-7 of the true value, relatively, wherever
that is a normal number; what is smaller is 0, what is larger than exp(88) is exp(88); NaN stays NaN.
"""

from __future__ import annotations

from typing import Any

from . import simd
from .jit import inline
from .simd import VI, Build, f32x16, i32x16, op

LOG2_E, LN2_HIGH, LN2_LOW = 1.44269504, 0.693359375, -2.12194440e-4
TO_INTEGER = 12582912.0  # 1.5 * 2**23: added to a small number, leaves its integer in the low bits


@op(f32x16, f32x16, f32x16)
def at_least(build: Build, x: Any, low: Any) -> Any:
    """x where it is not below `low`: unlike with `simd.larger`, NaN stays NaN."""
    return build.select(build.fcmp_ordered("<", x, low), low, x)


@op(f32x16, f32x16, f32x16)
def at_most(build: Build, x: Any, high: Any) -> Any:
    """x where it is not above `high`; NaN stays NaN."""
    return build.select(build.fcmp_ordered(">", x, high), high, x)


@op(i32x16, f32x16)
def as_int(build: Build, x: Any) -> Any:
    """The same bits."""
    return build.bitcast(x, VI)


@inline
def exp(x: Any) -> Any:
    """e**x by 2**n e**r, r at most half of log 2 (the polynomial is that of Cephes' expf)."""
    # Below -87.7 n is -127, whose scale is zero: exp(-inf) is 0 exactly, as masks need it.
    x = at_most(at_least(x, simd.fill(-88.0)), simd.fill(88.0))
    shifted = simd.fma(x, simd.fill(LOG2_E), simd.fill(TO_INTEGER))
    n = shifted - simd.fill(TO_INTEGER)
    r = simd.fma(n, simd.fill(-LN2_LOW), simd.fma(n, simd.fill(-LN2_HIGH), x))
    p = simd.fma(simd.fill(1.9875691500e-4), r, simd.fill(1.3981999507e-3))
    p = simd.fma(p, r, simd.fill(8.3334519073e-3))
    p = simd.fma(p, r, simd.fill(4.1665795894e-2))
    p = simd.fma(p, r, simd.fill(1.6666665459e-1))
    p = simd.fma(p, r, simd.fill(5.0000001201e-1))
    grown = simd.fma(r * r, p, r + simd.fill(1.0))
    scale = simd.shift_left(as_int(shifted) + simd.fill_i32(127), 23)
    return grown * simd.as_float(scale)


@inline
def sigmoid(x: Any) -> Any:
    return simd.fill(1.0) / (simd.fill(1.0) + exp(simd.fill(0.0) - x))


@inline
def silu(x: Any) -> Any:
    return x / (simd.fill(1.0) + exp(simd.fill(0.0) - x))


@inline
def softplus(x: Any) -> Any:
    """log(1 + e**x), as what is above 0 plus log(1 + u), u = e**-|x| at most 1."""
    u = exp(simd.fill(0.0) - simd.absolute(x))
    s = u / (u + simd.fill(2.0))  # log(1 + u) = 2 artanh(s), s at most 1/3
    square = s * s
    series = simd.fill(1 / 17)
    series = simd.fma(series, square, simd.fill(1 / 15))
    series = simd.fma(series, square, simd.fill(1 / 13))
    series = simd.fma(series, square, simd.fill(1 / 11))
    series = simd.fma(series, square, simd.fill(1 / 9))
    series = simd.fma(series, square, simd.fill(1 / 7))
    series = simd.fma(series, square, simd.fill(1 / 5))
    series = simd.fma(series, square, simd.fill(1 / 3))
    series = simd.fma(series, square, simd.fill(1.0))
    return simd.fma(s + s, series, at_least(x, simd.fill(0.0)))
