"""Products of codes in tiles of 16 by 16: what a matrix unit (AMX) does, for sixteen tokens at a time.

Called by `dot` where the level has it. Invariant: sums of codes are exact, and scaled in the order of
`dot.codes`, so that a token's result is the same to the bit in either. Elsewhere vectors do the unit's part,
if `QNEXT_TILES` asks for tiles: slower than no tiles, but the rest of this file is tested anywhere.

A tile of inputs is 16 tokens by 64 codes, read in place, and after the last token whatever lies there: see
`SPARE`. A tile of weights is 64 columns of 16 rows, four columns of each row side by side, unfolded on a desk
to signed bytes. So many are unfolded at a time as stay in the first cache while all tokens pass by. The unit
works a pair of groups ahead of the vectors that scale its sums: a sum is ready long after it was asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import literally
from numba.core import cgutils

from . import isa
from .jit import inline, pasted
from .simd import (
    I8,
    Build,
    address,
    call,
    dot_u8_i8,
    fill,
    fill_i32,
    fma,
    less,
    literal,
    load,
    load_bf16,
    load_i32,
    masked,
    op,
    prefetch_l2,
    registers_f32,
    shift_left,
    shift_right,
    spread,
    spread_i32,
    store,
    store_i32,
    to_float,
    types,
)

SIDE, DEPTH = 16, 64  # tokens and rows of a tile, and codes of each
TILE = SIDE * DEPTH  # bytes
UNIT, USED = isa.has("amx"), isa.uses_tiles()
FEWEST = 5  # tokens: fewer are sooner done by vectors
SPARE = SIDE - 1 if USED else 0  # rows of inputs, and their scales, that may be read after the last
HELD, SUMS = 16, 4  # tiles of weights that are unfolded at a time, and of sums
DESK = (HELD + SUMS) * TILE  # bytes that a thread needs
AHEAD = 8192  # bytes of weights that are asked for before they are read


def tiled(tokens: int) -> bool:
    """Whether products of so many tokens are done in tiles."""
    return USED and tokens >= FEWEST


def _config() -> ir.Constant:
    """Palette 1; tiles 0 and 1 for sums, 2 and 3 for inputs, 4 and 5 for weights: 16 rows of 64 bytes."""
    content = bytearray(64)
    content[0] = 1
    for tile in range(6):
        content[16 + 2 * tile], content[48 + tile] = DEPTH, SIDE
    return ir.Constant(ir.ArrayType(I8, 64), content)


@op(types.void)
def configure(build: Build) -> None:
    """Make the tiles ready for this thread (ldtilecfg)."""
    place = cgutils.alloca_once_value(build, _config())
    call(build, "llvm.x86.ldtilecfg", ir.VoidType(), build.bitcast(place, ir.PointerType(I8)))


@op(types.void)
def release(build: Build) -> None:
    """tilerelease"""
    call(build, "llvm.x86.tilerelease", ir.VoidType())


@op(types.void, literal)
def tile_zero(build: Build, tile: int) -> None:
    call(build, "llvm.x86.tilezero", ir.VoidType(), ir.Constant(I8, tile))


def _move(build: Build, name: str, tile: int, p: Any, step: Any) -> None:
    where = build.inttoptr(p, ir.PointerType(I8))
    call(build, f"llvm.x86.{name}", ir.VoidType(), ir.Constant(I8, tile), where, step)


@op(types.void, literal, address, address)
def tile_load(build: Build, tile: int, p: Any, step: Any) -> None:
    """16 rows of 64 bytes, `step` bytes apart (tileloadd)."""
    _move(build, "tileloadd64", tile, p, step)


@op(types.void, literal, address, address)
def tile_store(build: Build, tile: int, p: Any, step: Any) -> None:
    """tilestored"""
    _move(build, "tilestored64", tile, p, step)


@op(types.void, literal, literal, literal)
def tile_dot(build: Build, sums: int, left: int, right: int) -> None:
    """Add the products of four pairs of signed bytes to each sum (tdpbssd)."""
    tiles = [ir.Constant(I8, tile) for tile in (sums, left, right)]
    call(build, "llvm.x86.tdpbssd", ir.VoidType(), *tiles)


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


@inline
def by_vectors(rows: int, step: int, weights: int, count: int, out: int) -> None:
    for t in range(SIDE):
        sums, over = fill_i32(np.int32(0)), fill_i32(np.int32(0))
        for k in range(SIDE * count):  # 128 too much in each weight: vectors want one side unsigned
            codes = spread_i32(rows + t * step + 4 * k)
            sums = dot_u8_i8(sums, less(load_i32(weights + 64 * k), -128), codes)
            over = dot_u8_i8(over, fill_i32(np.int32(0x01010101)), codes)
        store_i32(out + 64 * t, sums - shift_left(over, 7))


even, odd = (_by_unit(0), _by_unit(1)) if UNIT else (by_vectors, by_vectors)
"""Sums [16, 16] of `count` pairs of tiles: tokens at `rows`, `step` bytes apart, by weights side by side."""


@inline
def take_unit(desks: int) -> None:
    """Before a thread's products, if there is a desk for them."""
    if UNIT:  # noqa: SIM102 (Numba leaves out what is known to be false)
        if desks != 0:
            configure()


@inline
def leave_unit(desks: int) -> None:
    """After them: a thread whose tiles are in use is dear to switch to."""
    if UNIT:  # noqa: SIM102 (Numba leaves out what is known to be false)
        if desks != 0:
            release()


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
