"""Dot products of packed rows, 16 a block, with a few tokens: the innermost loops of every matrix product.

Called by `linear` and `experts`, which say which rows and tokens. Weights are read once for up to eight
tokens. One or two take several blocks side by side, far apart: memory gives several streams sooner than
one, and additions need not wait for each other. A row's sums are added in the same order in any company, so
that its result is the same to the bit. What is made of a kind of weights and of inputs is compiled by itself,
once for all that call it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import overload

from . import isa, pairs
from .jit import align_stack, inline
from .simd import (
    I64,
    Build,
    address,
    as_float,
    dot_u8_i8,
    fill,
    fill_i32,
    fma,
    load_bf16,
    load_i32,
    masked,
    nibble,
    op,
    peek_i32,
    prefetch_l2,
    registers_f32,
    registers_i32,
    shift_left,
    shift_right,
    shift_right_by,
    spread,
    spread_i32,
    store,
    to_float,
)
from .task import Code
from .tiles import tiles
from .unit import UNIT

AHEAD = 8192  # bytes that are asked for before they are read, where there is enough to do meanwhile: with few
FEW = 1  # token the processor looks far enough ahead by itself, and asking is in its way
IN_PAIRS, EIGHTS = isa.level() == "avx2", isa.many_registers()
STREAMS = isa.has("avx2")  # of codes with AVX-512 one comes as fast as memory gives it
WIDE, NARROWER = 4, 2  # blocks side by side, of one token and of two


@cache
def codes(bits: int, tokens: int, wide: int) -> Any:
    """Codes of weights (4 or 8 bits) by codes of inputs. Products are exact: only the inputs were rounded.
    Of `wide` blocks, so many `apart`, as their results are."""

    @inline
    def multiply(matrix, block, apart, x, first, out, step):  # type: ignore[no-untyped-def]
        data, scales, size, groups, group = matrix
        width, row, row_scales, row_sums = x
        data, scales = data + block * size, scales + block * groups * 32
        row, row_scales = row + first * width, row_scales + first * groups * 4
        row_sums = row_sums + first * groups * 4
        # For one or two sums, both halves of a line apart: one chain of additions would be too slow.
        places = tokens * wide
        ways = 1 if bits == 4 and places < 4 else 0
        sums, ints = registers_f32(8), registers_i32(16)
        for i in range(places):
            sums[i] = fill(np.float32(0))
        for g in range(groups):
            at = 4 * g
            for t in range(tokens):  # a stored zero is 8 or 128: so much too much is in each product
                begin = fill_i32(
                    peek_i32(row_sums + at + t * groups * 4) * np.int32(-8 if bits == 4 else -128)
                )
                for w in range(wide):
                    ints[w * tokens + t] = begin
                    ints[places * ways + w * tokens + t] = fill_i32(np.int32(0)) if ways else begin
            for _ in range(group * bits // 32):
                for w in range(wide):
                    line = load_i32(data + w * apart * size)
                    if tokens > FEW:
                        prefetch_l2(data + w * apart * size + AHEAD)
                    if bits == 4:
                        low, high = masked(line, 0x0F0F0F0F), masked(shift_right(line, 4), 0x0F0F0F0F)
                        for t in range(tokens):
                            i = w * tokens + t
                            ints[i] = dot_u8_i8(ints[i], low, spread_i32(row + t * width))
                        for t in range(tokens):
                            i = places * ways + w * tokens + t
                            ints[i] = dot_u8_i8(ints[i], high, spread_i32(row + t * width + 4))
                    else:
                        for t in range(tokens):
                            i = w * tokens + t
                            ints[i] = dot_u8_i8(ints[i], line, spread_i32(row + t * width))
                data += 64
                row += 32 // bits
            for w in range(wide):
                scale = load_bf16(scales + w * apart * groups * 32)
                for t in range(tokens):
                    i = w * tokens + t
                    if ways:
                        ints[i] = ints[i] + ints[places + i]
                    factor = scale * spread(row_scales + at + t * groups * 4)
                    sums[i] = fma(to_float(ints[i]), factor, sums[i])
            scales += 32
        for w in range(wide):
            for t in range(tokens):
                store(out + 64 * w * apart + t * step, sums[w * tokens + t])

    return multiply


@cache
def column(bits: int) -> Any:
    """Takes column j of a line: 16 weights, before their scale."""

    @inline
    def take(line, j):  # type: ignore[no-untyped-def]
        if bits == 4:
            return nibble(line, np.int32(8 * (j % 4) + 4 * (j // 4)))
        if bits == 8:
            return to_float(masked(shift_right_by(line, np.int32(8 * j)), 255)) - fill(np.float32(128))
        if bits == 16:
            return as_float(shift_left(line, 16)) if j == 0 else as_float(masked(line, -65536))
        return as_float(line)

    return take


@cache
def floats(bits: int, tokens: int, wide: int) -> Any:
    """Weights of any kind by fp32 inputs: exact but for the rounding of fp32 sums. Blocks as in `codes`."""
    take = column(bits)

    @inline
    def multiply(matrix, block, apart, x, first, out, step):  # type: ignore[no-untyped-def]
        data, scales, size, groups, group = matrix
        width, row, _, _ = x
        data, scales, row = data + block * size, scales + block * groups * 32, row + 4 * first * width
        places = tokens * wide
        sums, part = registers_f32(8), registers_f32(8)
        for i in range(places):
            sums[i] = fill(np.float32(0))
        for _ in range(groups):
            for i in range(places):
                part[i] = fill(np.float32(0))
            for _ in range(group * bits // 32):
                for w in range(wide):
                    line = load_i32(data + w * apart * size)
                    if tokens > FEW:
                        prefetch_l2(data + w * apart * size + AHEAD)
                    for j in range(32 // bits):
                        weights = take(line, j)
                        for t in range(tokens):
                            i = w * tokens + t
                            part[i] = fma(weights, spread(row + 4 * (t * width + j)), part[i])
                data += 64
                row += 128 // bits
            for w in range(wide):
                scale = load_bf16(scales + w * apart * groups * 32) if bits < 16 else fill(np.float32(1))
                for t in range(tokens):
                    i = w * tokens + t
                    sums[i] = fma(part[i], scale, sums[i])
            scales += 32
        for w in range(wide):
            for t in range(tokens):
                store(out + 64 * w * apart + t * step, sums[w * tokens + t])

    return multiply


@inline
def at_once(tokens, blocks):  # type: ignore[no-untyped-def]
    """How many of some blocks `dot` is best asked for together: for one or two tokens all, to be taken side
    by side; else one, whose weights the next tokens find in the cache."""
    return max(1, blocks) if tokens <= 2 else 1


@op(types.void, *[address] * 17)
def run_rows(build: Build, code: Any, *about: Any) -> None:
    """Call a compiled `code_of` by its address."""
    kind = ir.FunctionType(ir.VoidType(), [I64] * len(about))
    build.call(build.inttoptr(code, kind.as_pointer()), about)


@op(types.void)
def aligned(build: Build) -> None:
    """See `align_stack`."""
    align_stack(build)


def product(coded, bits, tokens, wide, matrix, block, apart, x, first, out, step):  # type: ignore[no-untyped-def]
    """Codes by codes or floats by floats."""
    raise NotImplementedError("compiled code only")


@overload(product, prefer_literal=True)
def _product(coded, bits, tokens, wide, matrix, block, apart, x, first, out, step):  # type: ignore[no-untyped-def]
    # Only one of them is compiled at all.
    make = (pairs.codes if IN_PAIRS else codes) if coded.literal_value else floats
    chosen = make(bits.literal_value, tokens.literal_value, wide.literal_value)

    def multiply(coded, bits, tokens, wide, matrix, block, apart, x, first, out, step):  # type: ignore[no-untyped-def]
        chosen(matrix, block, apart, x, first, out, step)

    return multiply


def _rows(bits: int, coded: bool) -> Callable[..., None]:
    """What `dot` does with one kind of weights and inputs. All that it closes over are numbers: a compiled
    function among them would never be found in the cache again."""
    in_tiles, eights = UNIT and coded, EIGHTS
    streams = STREAMS and (IN_PAIRS or not coded)

    def multiply(  # type: ignore[no-untyped-def]
        data, scales, size, groups, group, width, rows, row_scales, row_sums,
        block, blocks, first, last, out, step, desk,
    ):  # fmt: skip
        aligned()
        matrix, x = (data, scales, size, groups, group), (width, rows, row_scales, row_sums)
        begin = 0
        if streams and last - first <= 2:
            wide = WIDE if last - first == 1 else NARROWER
            apart = blocks // wide
            for b in range(apart):
                if last - first == 1:
                    product(coded, bits, 1, WIDE, matrix, block + b, apart, x, first, out + 64 * b, step)
                else:
                    product(coded, bits, 2, NARROWER, matrix, block + b, apart, x, first, out + 64 * b, step)
            begin = wide * apart
        for b in range(begin, blocks):
            t, to = first, out + 64 * b
            if in_tiles:
                t = tiles(bits, matrix, block + b, x, first, last, to, step, desk)
                to += (t - first) * step
            if eights:
                while t + 8 <= last:
                    product(coded, bits, 8, 1, matrix, block + b, 0, x, t, to, step)
                    t += 8
                    to += 8 * step
            while t + 4 <= last:
                product(coded, bits, 4, 1, matrix, block + b, 0, x, t, to, step)
                t += 4
                to += 4 * step
            if t + 2 <= last:
                product(coded, bits, 2, 1, matrix, block + b, 0, x, t, to, step)
                t += 2
                to += 2 * step
            if t < last:
                product(coded, bits, 1, 1, matrix, block + b, 0, x, t, to, step)

    return multiply


@cache
def code_of(bits: int, coded: bool) -> Code:
    """`dot` for weights of so many bits, and inputs in codes or in floats."""
    return Code(_rows(bits, coded), 16)


@inline
def dot(code, matrix, x, block, blocks, first, last, out, step, desk):  # type: ignore[no-untyped-def]
    """Rows of some blocks by tokens `first` to `last` -> fp32 [tokens, 16 * blocks] at `out`, `step` bytes
    apart.

    `code`: the address of a `code_of`. `matrix`: addresses of data and scales, bytes of a block's data,
    groups, columns a group. `x`: columns, then addresses of the rows (codes or floats), their scales and
    sums. `desk`: a thread's `tiles.DESK` bytes, where tiles are used.
    """
    run_rows(code, *matrix, *x, block, blocks, first, last, out, step, desk)
