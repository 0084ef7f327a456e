"""A matrix unit (AMX): its instructions, and which of its eight tiles are for what.

Called by `tiles`, for codes, and by attention and `split`, for pairs of bf16; used where the level has one.
Invariant: a thread takes the unit before its first product and leaves it after the last. Where there is none,
tests have one in software.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from . import isa
from .jit import inline
from .simd import I8, I64, Build, address, call, literal, op

UNIT = isa.has("amx")
SIDE, LINE = 16, 64  # rows of a tile, and bytes of each


def _config() -> ir.Constant:
    """Palette 1; eight tiles of 16 rows of 64 bytes. For codes 0 and 1 are sums, 2 and 3 inputs, 4 and 5
    weights; for pairs of bf16 the first four sums, then one of rows and two of columns."""
    content = bytearray(LINE)
    content[0] = 1
    for tile in range(8):
        content[16 + 2 * tile], content[48 + tile] = LINE, SIDE
    return ir.Constant(ir.ArrayType(I8, LINE), content)


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


@op(types.void, literal)
def zero_sums(build: Build, count: int) -> None:
    """Begin so many tiles of sums side by side, of up to four."""
    for tile in range(count):
        call(build, "llvm.x86.tilezero", ir.VoidType(), ir.Constant(I8, tile))


@op(types.void, literal, address, address)
def load_sums(build: Build, count: int, p: Any, step: Any) -> None:
    """Begin them with what is there, 16 rows `step` bytes apart."""
    for tile in range(count):
        _move(build, "tileloadd64", tile, build.add(p, ir.Constant(I64, LINE * tile)), step)


@op(types.void, literal, address, address)
def store_sums(build: Build, count: int, p: Any, step: Any) -> None:
    for tile in range(count):
        _move(build, "tilestored64", tile, build.add(p, ir.Constant(I64, LINE * tile)), step)


@op(types.void, literal, address, address, address, address)
def dot_sums(build: Build, count: int, rows: Any, row_step: Any, columns: Any, step: Any) -> None:
    """Add to them the products of 16 rows of 16 pairs of bf16, and as many rows of columns' pairs
    (tdpbf16ps)."""
    left = 4
    _move(build, "tileloadd64", left, rows, row_step)
    for tile in range(count):
        right = 5 + tile % 2
        _move(build, "tileloadd64", right, build.add(columns, ir.Constant(I64, LINE * tile)), step)
        numbers = [ir.Constant(I8, number) for number in (tile, left, right)]
        call(build, "llvm.x86.tdpbf16ps", ir.VoidType(), *numbers)


@inline
def take_unit(wanted: int) -> None:
    """Before a thread's products, unless `wanted` (a desk, say) is 0."""
    if UNIT:  # noqa: SIM102 (Numba leaves out what is known to be false)
        if wanted != 0:
            configure()


@inline
def leave_unit(wanted: int) -> None:
    """After them: a thread whose tiles are in use is dear to switch to."""
    if UNIT:  # noqa: SIM102 (Numba leaves out what is known to be false)
        if wanted != 0:
            release()
