"""Products of codes on a machine that multiplies bytes in pairs: AVX2, which has no sums of four.

Called by `dot` at that level. Invariant: sums of codes are exact, and scaled in the order of `dot.codes`, so
that a result is the same to the bit as at any other level.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir

from .jit import inline, pasted
from .simd import (
    I8,
    I16,
    I32,
    VB,
    VH,
    VI,
    Build,
    call,
    every,
    fill,
    fill_i32,
    fma,
    i32x16,
    load_bf16,
    load_i32,
    masked,
    op,
    peek_i32,
    prefetch_l2,
    registers_f32,
    registers_i32,
    shift_right,
    spread,
    spread_i32,
    store,
    to_float,
)

MOST = 4  # sums at once: with more, they would not fit the sixteen registers of 32 bytes
AHEAD, NEAR = 8192, 512  # bytes that are asked for before they are read; with one token
LINES = 4  # of 4-bit codes, whose pairs (at most 2 * 15 * 127) add up within 16 bits


def _by_halves(build: Build, name: str, kind: ir.VectorType, *vectors: Any) -> Any:
    """An instruction of 32 bytes for both halves of 64."""
    size = vectors[0].type.count // 2
    found = []
    for begin in (0, size):
        places = ir.Constant(ir.VectorType(I32, size), list(range(begin, begin + size)))
        found.append(call(build, name, kind, *(build.shuffle_vector(v, v, places) for v in vectors)))
    both = ir.Constant(ir.VectorType(I32, 2 * kind.count), list(range(2 * kind.count)))
    return build.bitcast(build.shuffle_vector(*found, both), VI)


@op(i32x16, i32x16, i32x16)
def pairs(build: Build, u: Any, s: Any) -> Any:
    """32 sums of 2 products of unsigned and signed bytes; they must fit in 16 bits (vpmaddubsw)."""
    u, s = build.bitcast(u, VB), build.bitcast(s, VB)
    return _by_halves(build, "llvm.x86.avx2.pmadd.ub.sw", ir.VectorType(I16, 16), u, s)


@op(i32x16, i32x16, i32x16)
def add_16(build: Build, x: Any, y: Any) -> Any:
    """32 sums of numbers of 16 bits."""
    return build.bitcast(build.add(build.bitcast(x, VH), build.bitcast(y, VH)), VI)


@op(i32x16, i32x16)
def neighbours(build: Build, x: Any) -> Any:
    """16 sums of 2 numbers of 16 bits (vpmaddwd)."""
    x = build.bitcast(x, VH)
    return _by_halves(build, "llvm.x86.avx2.pmadd.wd", ir.VectorType(I32, 8), x, every(VH, 1))


@op(i32x16, i32x16)
def centred(build: Build, x: Any) -> Any:
    """64 bytes less 128."""
    return build.bitcast(build.xor(build.bitcast(x, VB), every(VB, -128)), VI)


@op(i32x16, i32x16)
def sizes(build: Build, x: Any) -> Any:
    """64 bytes without their signs, -128 as 128."""
    x = build.bitcast(x, VB)
    minus = build.icmp_signed("<", x, every(VB, 0))
    return build.bitcast(build.select(minus, build.sub(every(VB, 0), x), x), VI)


@op(i32x16, i32x16, i32x16)
def signed_as(build: Build, x: Any, y: Any) -> Any:
    """64 bytes of x, each with its sign turned where y is below 0, and 0 where y is (vpsignb)."""
    x, y = build.bitcast(x, VB), build.bitcast(y, VB)
    return _by_halves(build, "llvm.x86.avx2.psign.b", ir.VectorType(I8, 32), x, y)


@pasted
def nibbles(tokens, data, row, width, ints, place):  # type: ignore[no-untyped-def]
    """Add the products of `LINES` lines of 4-bit codes to the sums from a place on."""
    part = registers_i32(tokens)
    for t in range(tokens):
        part[t] = fill_i32(np.int32(0))
    for i in range(LINES):
        line = load_i32(data + 64 * i)
        prefetch_l2(data + 64 * i + (AHEAD if tokens > 1 else NEAR))
        low, high = masked(line, 0x0F0F0F0F), masked(shift_right(line, 4), 0x0F0F0F0F)
        for t in range(tokens):  # both halves at once: products that wait for others' would be put down
            here = row + t * width + 8 * i
            both = add_16(pairs(low, spread_i32(here)), pairs(high, spread_i32(here + 4)))
            part[t] = add_16(part[t], both)
    for t in range(tokens):
        ints[place + t] = ints[place + t] + neighbours(part[t])


@pasted
def bytes_of(tokens, data, row, width, ints, place):  # type: ignore[no-untyped-def]
    """Add the products of a line of 8-bit codes."""
    line = centred(load_i32(data))
    prefetch_l2(data + (AHEAD if tokens > 1 else NEAR))
    size = sizes(line)  # times a code of the input, twice: at most 2 * 128 * 127
    for t in range(tokens):
        found = neighbours(pairs(size, signed_as(spread_i32(row + t * width), line)))
        ints[place + t] = ints[place + t] + found


@cache
def codes(bits: int, tokens: int, wide: int) -> Any:
    """`dot.codes`: codes of weights (4 or 8 bits) by codes of inputs."""

    @inline
    def multiply(matrix, block, apart, x, first, out, step):  # type: ignore[no-untyped-def]
        data, scales, size, groups, group = matrix
        width, row, row_scales, row_sums = x
        data, scales, row = data + block * size, scales + block * groups * 32, row + first * width
        row_scales, row_sums = row_scales + first * groups * 4, row_sums + first * groups * 4
        sums, ints = registers_f32(MOST), registers_i32(MOST)
        for i in range(wide * tokens):
            sums[i] = fill(np.float32(0))
        for g in range(groups):
            at = 4 * g
            for t in range(tokens):  # a stored zero of 4 bits is 8: so much too much is in each product
                begin = fill_i32(peek_i32(row_sums + at + t * groups * 4) * np.int32(-8 if bits == 4 else 0))
                for w in range(wide):
                    ints[w * tokens + t] = begin
            if bits == 4:
                for _ in range(group // (8 * LINES)):
                    for w in range(wide):
                        nibbles(tokens, data + w * apart * size, row, width, ints, w * tokens)
                    data += 64 * LINES
                    row += 8 * LINES
            else:
                for _ in range(group // 4):
                    for w in range(wide):
                        bytes_of(tokens, data + w * apart * size, row, width, ints, w * tokens)
                    data += 64
                    row += 4
            for w in range(wide):
                scale = load_bf16(scales + w * apart * groups * 32)
                for t in range(tokens):
                    factor = scale * spread(row_scales + at + t * groups * 4)
                    sums[w * tokens + t] = fma(to_float(ints[w * tokens + t]), factor, sums[w * tokens + t])
            scales += 32
        for w in range(wide):
            for t in range(tokens):
                store(out + 64 * w * apart + t * step, sums[w * tokens + t])

    return multiply
