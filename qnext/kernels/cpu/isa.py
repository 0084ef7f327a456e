"""Which instructions the CPU kernels may use: decided once, before the first of them is compiled.

Called by `simd` and by the kernels that have a form of their own for an instruction set. Invariant: the level
never changes while the process lives, since compiled kernels hold it.
"""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache

import llvmlite.binding as llvm

LEVELS = ("generic", "avx2", "avx512vnni", "amx")  # each includes those before it
NEEDED = {
    "avx2": ("avx2", "fma"),
    "avx512vnni": ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vnni"),
    "amx": ("amx-tile", "amx-int8", "amx-bf16", "avx512bf16"),
}
ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA = 158, 0x1023, 18


def best_level(features: frozenset[str]) -> str:
    """The highest level whose instructions, and those of all levels below, a CPU has."""
    level = "generic"
    for name in LEVELS[1:]:
        if not features.issuperset(NEEDED[name]):
            break
        level = name
    return level


@cache
def features() -> frozenset[str]:
    """What this CPU can do, in LLVM's words."""
    return frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)


@cache
def level() -> str:
    """`QNEXT_ISA`, or the best this machine has. Raises ValueError if the machine lacks what is asked for."""
    best = best_level(features())
    asked = os.environ.get("QNEXT_ISA") or best
    if asked not in LEVELS:
        raise ValueError(f"QNEXT_ISA is {asked!r}: use one of {', '.join(LEVELS)}")
    if LEVELS.index(asked) > LEVELS.index(best):
        raise ValueError(f"QNEXT_ISA is {asked}, but this CPU has no more than {best}: unset it")
    if asked == "amx" and not _tiles_permitted():
        return "avx512vnni"
    return asked


def has(name: str) -> bool:
    """Whether the level in use includes another."""
    return LEVELS.index(level()) >= LEVELS.index(name)


def many_registers() -> bool:
    """Whether there are 32 registers of 64 bytes. Else there are 16 of 32, and 16 floats take two of them:
    sums that would not stay in them cost more than reading something twice."""
    return has("avx512vnni")


def has_bf16() -> bool:
    """Whether the level in use may multiply pairs of bf16 (an extension that not every AVX-512 CPU has)."""
    return has("avx512vnni") and "avx512bf16" in features()


def _tiles_permitted() -> bool:
    """Linux hands out the AMX registers on request only."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    return bool(ctypes.CDLL(None).syscall(ARCH_PRCTL, REQUEST_PERMISSION, TILE_DATA) == 0)
