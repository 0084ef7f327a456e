"""Products of codes in tiles of 16 by 16: what a matrix unit (AMX) does, for sixteen tokens at a time.

Called by `dot` where the level has it. Invariant: sums of codes are exact, and scaled in the order of
`dot.codes`, so that a token's result is the same to the bit in either. At other levels `tile_product` is
arithmetic that gives the same, which is how this file is tested anywhere.

A tile of inputs is 16 tokens by 64 codes, read in place. A tile of weights is 64 columns of 16 rows, four
columns of each row side by side: two lines of 8 bits, or what one line of 4 bits unfolds to.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import literally
from numba.core import cgutils

from . import isa
from .jit import inline
from .simd import (
    I8,
    Build,
    address,
    call,
    dot_u8_i8,
    fill,
    fill_i32,
    fma,
    literal,
    load_bf16,
    load_i32,
    masked,
    op,
    peek_i32,
    registers_f32,
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
UNIT = isa.has("amx")


def tiled(tokens: int) -> bool:
    """Whether products of so many tokens are done in tiles."""
    return UNIT and tokens >= SIDE


@inline
def desk_size(width: int) -> int:
    """Bytes that a thread needs: 16 rows of weights unfolded, and a tile of sums."""
    return SIDE * width + TILE


def _config() -> ir.Constant:
    """Palette 1; tile 0 for sums, 1 for inputs, 2 for weights: 16 rows of 64 bytes each."""
    content = bytearray(64)
    content[0] = 1
    for tile in range(3):
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
def tile_dot(build: Build, sums: int, signed: int, unsigned: int) -> None:
    """Add the products of four pairs of bytes to each sum (tdpbsud)."""
    tiles = [ir.Constant(I8, tile) for tile in (sums, signed, unsigned)]
    call(build, "llvm.x86.tdpbsud", ir.VoidType(), *tiles)


@inline
def by_unit(a: int, a_step: int, b: int, count: int, out: int) -> None:
    tile_zero(0)
    for k in range(count):
        tile_load(1, a + DEPTH * k, a_step)
        tile_load(2, b + TILE * k, 64)
        tile_dot(0, 1, 2)
    tile_store(0, out, 64)


@inline
def by_vectors(a: int, a_step: int, b: int, count: int, out: int) -> None:
    for t in range(SIDE):
        sums = fill_i32(np.int32(0))
        for k in range(SIDE * count):
            sums = dot_u8_i8(sums, load_i32(b + 64 * k), spread_i32(a + t * a_step + 4 * k))
        store_i32(out + 64 * t, sums)


tile_product = by_unit if UNIT else by_vectors
"""Sums [16, 16] of `count` pairs of tiles: signed inputs at `a`, tokens `a_step` bytes apart, by unsigned
weights at `b`."""


@inline
def tiles(bits, matrix, block, x, first, last, out, step, desk):  # type: ignore[no-untyped-def]
    """As many sixteens of tokens as there are, as `dot.dot` -> the first token that is left. None where
    groups are shorter than a tile."""
    bits = literally(bits)
    data, scales, size, groups, group = matrix
    width, rows, row_scales, row_sums = x
    if group % DEPTH or first + SIDE > last:
        return first
    data, scales, count = data + block * size, scales + block * groups * 32, group // DEPTH
    sums, ints = desk, desk + TILE
    if bits == 4:
        for i in range(size // 64):
            line = load_i32(data + 64 * i)
            store_i32(ints + 128 * i, masked(line, 0x0F0F0F0F))
            store_i32(ints + 128 * i + 64, masked(shift_right(line, 4), 0x0F0F0F0F))
        data = ints
    zero = np.int32(-8 if bits == 4 else -128)
    if UNIT:
        configure()
    acc = registers_f32(16)
    while first + SIDE <= last:
        for t in range(SIDE):
            acc[t] = fill(np.float32(0))
        for g in range(groups):
            tile_product(rows + first * width + g * group, width, data + g * count * TILE, count, sums)
            scale = load_bf16(scales + 32 * g)
            for t in range(SIDE):
                at = 4 * ((first + t) * groups + g)
                whole = load_i32(sums + 64 * t) + fill_i32(peek_i32(row_sums + at) * zero)
                acc[t] = fma(to_float(whole), scale * spread(row_scales + at), acc[t])
        for t in range(SIDE):
            store(out + t * step, acc[t])
        first += SIDE
        out += SIDE * step
    if UNIT:
        release()
    return first
