"""Dot products of 16 packed rows with a few tokens: the innermost loops of every matrix product.

Called by `linear` and `experts`, which say which rows and tokens. Weights are read once for up to eight
tokens; a token's sums are added in the same order beside any others, so that its result is the same to the
bit. `bits`, `coded` and `tokens` are literal integers: what is made of them is compiled by itself.
"""

from __future__ import annotations

import numpy as np
from numba import literally
from numba.extending import overload

from . import isa, pairs
from .jit import inline
from .simd import (
    as_float,
    dot_u8_i8,
    fill,
    fill_i32,
    fma,
    load_bf16,
    load_i32,
    masked,
    nibble,
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
from .tiles import USED, tiles

AHEAD = 8192  # bytes that are asked for before they are read, where there is enough to do meanwhile: with few
FEW = 1  # token the processor looks far enough ahead by itself, and asking is in its way
IN_PAIRS, EIGHTS = isa.level() == "avx2", isa.many_registers()


@inline
def codes(bits, tokens, matrix, block, x, first, out, step):  # type: ignore[no-untyped-def]
    """Codes of weights (4 or 8 bits) by codes of inputs. Products are exact: only the inputs were rounded."""
    bits, tokens = literally(bits), literally(tokens)
    data, scales, size, groups, group = matrix
    width, row, row_scales, row_sums = x
    data, scales = data + block * size, scales + block * groups * 32
    row, row_scales, row_sums = (
        row + first * width,
        row_scales + first * groups * 4,
        row_sums + first * groups * 4,
    )
    # For one or two tokens, sums of both halves of a line apart: one chain of additions would be too slow.
    ways = 1 if bits == 4 and tokens < 4 else 0
    sums, ints = registers_f32(tokens), registers_i32(16)
    for t in range(tokens):
        sums[t] = fill(np.float32(0))
    for g in range(groups):
        at = 4 * g
        for t in range(tokens):  # a stored zero is 8 or 128: so much too much is in each product
            ints[t] = fill_i32(peek_i32(row_sums + at + t * groups * 4) * np.int32(-8 if bits == 4 else -128))
            if ways:
                ints[tokens + t] = fill_i32(np.int32(0))
        for _ in range(group * bits // 32):
            line = load_i32(data)
            if tokens > FEW:
                prefetch_l2(data + AHEAD)
            data += 64
            if bits == 4:
                low, high = masked(line, 0x0F0F0F0F), masked(shift_right(line, 4), 0x0F0F0F0F)
                for t in range(tokens):
                    ints[t] = dot_u8_i8(ints[t], low, spread_i32(row + t * width))
                for t in range(tokens):
                    u = tokens * ways + t
                    ints[u] = dot_u8_i8(ints[u], high, spread_i32(row + t * width + 4))
                row += 8
            else:
                for t in range(tokens):
                    ints[t] = dot_u8_i8(ints[t], line, spread_i32(row + t * width))
                row += 4
        scale = load_bf16(scales)
        scales += 32
        for t in range(tokens):
            if ways:
                ints[t] = ints[t] + ints[tokens + t]
            sums[t] = fma(to_float(ints[t]), scale * spread(row_scales + at + t * groups * 4), sums[t])
    for t in range(tokens):
        store(out + t * step, sums[t])


@inline
def column(bits, line, j):  # type: ignore[no-untyped-def]
    """Column j of a line: 16 weights, before their scale."""
    bits = literally(bits)
    if bits == 4:
        return nibble(line, np.int32(8 * (j % 4) + 4 * (j // 4)))
    if bits == 8:
        return to_float(masked(shift_right_by(line, np.int32(8 * j)), 255)) - fill(np.float32(128))
    if bits == 16:
        return as_float(shift_left(line, 16)) if j == 0 else as_float(masked(line, -65536))
    return as_float(line)


@inline
def floats(bits, tokens, matrix, block, x, first, out, step):  # type: ignore[no-untyped-def]
    """Weights of any kind by fp32 inputs: exact but for the rounding of fp32 sums. Floats are added up in
    quarters: for one or two tokens side by side, as one chain of additions would be too slow."""
    bits, tokens = literally(bits), literally(tokens)
    data, scales, size, groups, group = matrix
    width, row, _, _ = x
    data, scales, row = data + block * size, scales + block * groups * 32, row + 4 * first * width
    quarters = 4 if bits >= 16 else 1
    ways = quarters // tokens if tokens < quarters else 1
    lines = group * bits // (32 * quarters)
    columns, stretch = 32 // bits, lines * (32 // bits)  # of a line and of a quarter
    sums, whole, part = registers_f32(tokens), registers_f32(tokens), registers_f32(8)
    for t in range(tokens):
        sums[t] = fill(np.float32(0))
    for _ in range(groups):
        for t in range(tokens):
            whole[t] = fill(np.float32(0))
        for _ in range(quarters // ways):
            for i in range(ways * tokens):
                part[i] = fill(np.float32(0))
            for _ in range(lines):
                for q in range(ways):
                    line = load_i32(data + 64 * lines * q)
                    if tokens > FEW:
                        prefetch_l2(data + 64 * lines * q + AHEAD)
                    for j in range(columns):
                        weights = column(bits, line, j)
                        for t in range(tokens):
                            at = row + 4 * (t * width + q * stretch + j)
                            part[q * tokens + t] = fma(weights, spread(at), part[q * tokens + t])
                data += 64
                row += 4 * columns
            data += 64 * lines * (ways - 1)
            row += 4 * stretch * (ways - 1)
            for q in range(ways):
                for t in range(tokens):
                    whole[t] = whole[t] + part[q * tokens + t]
        if bits < 16:
            scale = load_bf16(scales)
            scales += 32
            for t in range(tokens):
                sums[t] = fma(whole[t], scale, sums[t])
        else:
            for t in range(tokens):
                sums[t] = sums[t] + whole[t]
    for t in range(tokens):
        store(out + t * step, sums[t])


def dot(bits, coded, matrix, block, x, first, last, out, step, desk):  # type: ignore[no-untyped-def]
    """Rows 16 * block and on by tokens `first` to `last` -> fp32 [tokens, 16] at `out`, `step` bytes apart.

    `matrix`: addresses of data and scales, bytes of a block's data, groups, columns a group. `x`: columns,
    then addresses of the rows (codes where `coded`, else floats), their scales and sums. `desk`: a thread's
    `tiles.DESK` bytes, where tiles are used.
    """
    raise NotImplementedError("compiled code only")


@overload(dot, prefer_literal=True)
def _dot(bits, coded, matrix, block, x, first, last, out, step, desk):  # type: ignore[no-untyped-def]
    # Only one of them is compiled at all.
    product = floats if not coded.literal_value else pairs.codes if IN_PAIRS else codes
    in_tiles, eights = USED and coded.literal_value, EIGHTS

    def by_eights(bits, coded, matrix, block, x, first, last, out, step, desk):  # type: ignore[no-untyped-def]
        if in_tiles:
            whole = tiles(bits, matrix, block, x, first, last, out, step, desk)
            out += (whole - first) * step
            first = whole
        if eights:
            while first + 8 <= last:
                product(bits, 8, matrix, block, x, first, out, step)
                first += 8
                out += 8 * step
        while first + 4 <= last:
            product(bits, 4, matrix, block, x, first, out, step)
            first += 4
            out += 4 * step
        if first + 2 <= last:
            product(bits, 2, matrix, block, x, first, out, step)
            first += 2
            out += 2 * step
        if first < last:
            product(bits, 1, matrix, block, x, first, out, step)

    return by_eights
