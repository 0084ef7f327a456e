"""A matrix unit in software, so that what is written for one is tested on any machine: `pytest -p` this.

Kernels are then compiled as if the level in use had a unit; its instructions are calls of the functions here,
which do what the processor's manual says. One unit: tests have one thread (`NUMBA_NUM_THREADS=1`) and a
folder of their own for what is compiled (`QNEXT_KERNEL_CACHE`). A unit that was not taken, or is set up in
another way than kernels take for granted, computes nothing.
"""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
import numba
import numpy as np
from numba.core import types

from qnext.kernels.cpu import isa, simd
from qnext.kernels.cpu.jit import PLAIN
from qnext.kernels.cpu.simd import (
    dot_bf16,
    dot_u8_i8,
    fill,
    fill_i32,
    less,
    load,
    load_i32,
    peek_i32,
    poke_i32,
    shift_left,
    spread_i32,
    store,
    store_i32,
)

TILE, LINE, ROWS = 1024, 64, 16
memory = np.zeros(9 * TILE + LINE, np.uint8)  # eight tiles, and whether they may be used
TILES = -(-memory.ctypes.data // LINE) * LINE
TAKEN = TILES + 8 * TILE
NUMBER, PLACE, WORD = types.int8, types.voidptr, types.int64
BYTES_WANTED = 0x0040_0040  # of rows of a pair of tiles, 16 bits each
ROWS_WANTED = 0x1010_1010  # of four tiles, 8 bits each


def configured(p: int) -> None:
    """ldtilecfg: all is 0."""
    right = peek_i32(p) == 1
    for i in range(4):
        right = right and peek_i32(p + 16 + 4 * i) == BYTES_WANTED
    for i in range(2):
        right = right and peek_i32(p + 48 + 4 * i) == ROWS_WANTED
    for i in range(8 * ROWS):
        store_i32(TILES + LINE * i, fill_i32(np.int32(0)))
    poke_i32(TAKEN, np.int32(right))


def released() -> None:
    """tilerelease"""
    poke_i32(TAKEN, np.int32(0))


def zeroed(tile: int) -> None:
    """tilezero"""
    for r in range(ROWS):
        store_i32(TILES + TILE * tile + LINE * r, fill_i32(np.int32(0)))


def loaded(tile: int, p: int, step: int) -> None:
    """tileloadd"""
    for r in range(ROWS):
        if peek_i32(TAKEN):
            store_i32(TILES + TILE * tile + LINE * r, load_i32(p + step * r))


def stored(tile: int, p: int, step: int) -> None:
    """tilestored"""
    for r in range(ROWS):
        store_i32(p + step * r, load_i32(TILES + TILE * tile + LINE * r))


def dotted_bytes(sums: int, left: int, right: int) -> None:
    """tdpbssd: products of four pairs of signed bytes for each sum. 128 too much in each of the right, as
    vectors want one side unsigned."""
    a, b, c = TILES + TILE * left, TILES + TILE * right, TILES + TILE * sums
    for r in range(ROWS):
        found, over = load_i32(c + LINE * r), fill_i32(np.int32(0))
        for k in range(16):
            codes = spread_i32(a + LINE * r + 4 * k)
            found = dot_u8_i8(found, less(load_i32(b + LINE * k), -128), codes)
            over = dot_u8_i8(over, fill_i32(np.int32(0x01010101)), codes)
        store_i32(c + LINE * r, found - shift_left(over, 7))


def dotted_bf16(sums: int, left: int, right: int) -> None:
    """tdpbf16ps: products of a pair of bf16 for each sum, in fp32."""
    a, b, c = TILES + TILE * left, TILES + TILE * right, TILES + TILE * sums
    for r in range(ROWS):
        found = load(c + LINE * r) + fill(0.0)
        for k in range(16):
            found = dot_bf16(found, spread_i32(a + LINE * r + 4 * k), load_i32(b + LINE * k))
        store(c + LINE * r, found)


INSTRUCTIONS = {
    "llvm.x86.ldtilecfg": (configured, [WORD]),
    "llvm.x86.tilerelease": (released, []),
    "llvm.x86.tilezero": (zeroed, [NUMBER]),
    "llvm.x86.tileloadd64": (loaded, [NUMBER, WORD, WORD]),
    "llvm.x86.tilestored64": (stored, [NUMBER, WORD, WORD]),
    "llvm.x86.tdpbssd": (dotted_bytes, [NUMBER] * 3),
    "llvm.x86.tdpbf16ps": (dotted_bf16, [NUMBER] * 3),
}
compiled = {}
for name, (function, arguments) in INSTRUCTIONS.items():
    compiled[name] = numba.cfunc(types.void(*arguments), **PLAIN)(function)
    llvm.add_symbol(f"soft.{name}", compiled[name].address)

level, call = isa.level(), simd.call


def has_unit(name: str) -> bool:
    """The unit, and else what instructions there really are."""
    return name == "amx" or isa.LEVELS.index(level) >= isa.LEVELS.index(name)


def call_soft(build: Any, name: str, result: Any, *values: Any) -> Any:
    return call(build, f"soft.{name}" if name in compiled else name, result, *values)


isa.has, simd.call = has_unit, call_soft
isa.level = lambda: "amx"  # type: ignore[assignment]
isa.many_registers = lambda: True  # as there are with a unit: other loops, of the instructions that there are

from qnext.kernels.cpu import attention  # noqa: E402 (it looks for a unit when it is imported)


class WithPairs:
    """As attention sees the level: with products of bf16, in which every unit has its part."""

    has_bf16 = staticmethod(lambda: True)


attention.isa = WithPairs  # type: ignore[attr-defined]
