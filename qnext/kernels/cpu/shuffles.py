"""Vectors whose places are moved: sums of many vectors at once, transposition, pairs of halves; and the
counter from which threads take their work.

Used by the kernels that change a layout. All are LLVM's portable shuffles, lowered to the permutations that
the machine has.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import types

from . import isa
from .simd import I32, I64, VH, VI, Build, address, both_bf16, every, f32x16, floats, i32x16, integers, op


def _shuffled(build: Build, x: Any, y: Any, places: list[int]) -> Any:
    """Places of x, then (from `x.type.count` on) of y."""
    return build.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(places)), places))


def _read(build: Build, rows: Any) -> list[Any]:
    return [build.load(build.gep(rows, [ir.Constant(I64, i)])) for i in range(16)]


@op(f32x16, floats)
def totals(build: Build, rows: Any) -> Any:
    """In place i the sum of row i, of 16: each step adds the halves of the vectors, two in one."""
    found = _read(build, rows)
    for width in (8, 4, 2, 1):
        near = [place & ~width | (16 if place & width else 0) for place in range(16)]
        far = [place + width for place in near]
        pairs = zip(found[: len(found) // 2], found[len(found) // 2 :], strict=True)
        found = [build.fadd(*(_shuffled(build, x, y, places) for places in (near, far))) for x, y in pairs]
    return found[0]


@op(types.void, integers)
def transpose(build: Build, rows: Any) -> None:
    """16 rows of 16 numbers become their columns."""
    found = _read(build, rows)
    for width in (8, 4, 2, 1):
        for i in (i for i in range(16) if not i & width):
            x, y = found[i], found[i + width]
            upper = [p if not p & width else p - width + 16 for p in range(16)]
            lower = [p + width if not p & width else p + 16 for p in range(16)]
            found[i], found[i + width] = _shuffled(build, x, y, upper), _shuffled(build, x, y, lower)
    for i, row in enumerate(found):
        build.store(row, build.gep(rows, [ir.Constant(I64, i)]))


def _zipped(build: Build, x: Any, y: Any, begin: int) -> Any:
    x, y = (build.bitcast(v, VH) for v in (x, y))
    places = [place for at in range(begin, begin + 16) for place in (at, at + 32)]
    return build.bitcast(_shuffled(build, x, y, places), VI)


@op(i32x16, i32x16, i32x16)
def zip_low(build: Build, x: Any, y: Any) -> Any:
    """Pairs (x, y) of the first 16 halves of both."""
    return _zipped(build, x, y, 0)


@op(i32x16, i32x16, i32x16)
def zip_high(build: Build, x: Any, y: Any) -> Any:
    """Pairs (x, y) of the last 16 halves of both."""
    return _zipped(build, x, y, 16)


@op(f32x16, f32x16)
def swap_halves(build: Build, x: Any) -> Any:
    """The last 8, then the first 8."""
    return _shuffled(build, x, x, [*range(8, 16), *range(8)])


@op(f32x16, f32x16)
def swap_quarters(build: Build, x: Any) -> Any:
    """The second 4, the first 4, the last 4, the third 4."""
    return _shuffled(build, x, x, [place ^ 4 for place in range(16)])


@op(i32x16, f32x16, f32x16)
def pair_bf16(build: Build, low: Any, high: Any) -> Any:
    """Two vectors as bf16 in one, side by side in each place. Finite numbers only."""
    if isa.has_bf16():
        both = both_bf16(build, low, high)
        places = [place for i in range(16) for place in (i, i + 16)]
        return build.bitcast(_shuffled(build, both, both, places), VI)
    one, half = every(VI, 1), every(VI, 0x7FFF)

    def rounded(x: Any) -> Any:
        bits = build.bitcast(x, VI)
        return build.add(build.add(bits, half), build.and_(build.lshr(bits, every(VI, 16)), one))

    upper = build.and_(rounded(high), every(VI, -65536))
    return build.or_(build.lshr(rounded(low), every(VI, 16)), upper)


@op(types.int64, address)
def take(build: Build, counter: Any) -> Any:
    """The next number of a counter that threads share (int64 at the address): each is given once."""
    where = build.inttoptr(counter, ir.PointerType(I64))
    return build.atomic_rmw("add", where, ir.Constant(I64, 1), "monotonic")
