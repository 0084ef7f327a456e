"""Numbers as the loops of this package read and write them, and the exponential, one at a time: LLVM makes
vectors of such loops.

A tensor of fp32 is an array of float32 to them, one of bf16 an array of int16. Arithmetic is float32,
constants included. Invariant: NaN stays NaN, and what is rounded to bf16 is rounded to the nearest, ties to
even.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload
from torch import Tensor

from ..cpu import jit
from ..cpu.jit import inline

# Sums may be added in another order, and products without being rounded first: so they become vectors.
LOOSE = frozenset({"reassoc", "contract", "nsz"})
DTYPES = (torch.float32, torch.bfloat16)
F32, I32 = ir.FloatType(), ir.IntType(32)

zero, one = np.float32(0), np.float32(1)


def loops(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a function of arrays and numbers when it is first called."""
    return jit.kernel(fastmath=LOOSE)(function)


def array(x: Tensor) -> Any:
    """A contiguous tensor as kernels see it; they share its memory."""
    x = x.detach()
    return (x.view(torch.int16) if x.dtype == torch.bfloat16 else x).numpy()


def copied(x: Tensor) -> Any:
    """A copy in fp32: FSDP resizes the memory of parameters, and what an array shares cannot be resized."""
    return array(x.detach().float().clone(memory_format=torch.contiguous_format))


def rows(x: Tensor) -> tuple[Any, int]:
    """A tensor [T, ...] whose rows may lie apart: all numbers from its first one on, and from row to row."""
    inner = x[0].numel()
    if not x[0].is_contiguous():
        x = x.contiguous()
    pitch = x.stride(0)
    return array(x.as_strided(((len(x) - 1) * pitch + inner,), (1,))), pitch


def computes(*tensors: Tensor) -> bool:
    """Whether the kernels here are for such tensors."""
    return all(x.dtype in DTYPES and x.device.type == "cpu" for x in tensors)


def matmul_dtype(x: Tensor) -> torch.dtype:
    """What matrix products of `x` are done in."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


@intrinsic
def _as_float(_typing: Any, _bits: Any) -> Any:
    def codegen(_context: Any, build: Any, _signature: Any, values: Any) -> Any:
        return build.bitcast(values[0], F32)

    return types.float32(types.int32), codegen


@intrinsic
def _as_bits(_typing: Any, _x: Any) -> Any:
    def codegen(_context: Any, build: Any, _signature: Any, values: Any) -> Any:
        return build.bitcast(values[0], I32)

    return types.int32(types.float32), codegen


@intrinsic
def nearest(_typing: Any, _x: Any) -> Any:
    """Rounded to an integer, ties to even."""

    def codegen(_context: Any, build: Any, _signature: Any, values: Any) -> Any:
        return build.call(build.module.declare_intrinsic("llvm.rint", [F32]), values)

    return types.float32(types.float32), codegen


def wide(x):  # type: ignore[no-untyped-def]
    """An element of an array as float32."""
    raise NotImplementedError("compiled code only")


@overload(wide)
def _wide(x):  # type: ignore[no-untyped-def]
    if x == types.int16:
        return lambda x: _as_float(np.int32(x) << np.int32(16))  # type: ignore[call-arg]
    return lambda x: x


def put(row, i, x):  # type: ignore[no-untyped-def]
    """row[i] = x, rounded to what the array holds."""
    raise NotImplementedError("compiled code only")


@overload(put)
def _put(row, i, x):  # type: ignore[no-untyped-def]
    def as_it_is(row, i, x):  # type: ignore[no-untyped-def]
        row[i] = x

    def rounded(row, i, x):  # type: ignore[no-untyped-def]
        bits: Any = _as_bits(x)  # type: ignore[call-arg]
        high = (bits + np.int32(0x7FFF) + ((bits >> np.int32(16)) & np.int32(1))) >> np.int32(16)
        row[i] = np.int16(high if x == x else np.int32(0x7FC0))

    return rounded if row.dtype == types.int16 else as_it_is


@inline
def exp(x: Any) -> Any:
    """e**x within 4e-7, as in `cpu.activations`: 0 below -87.7, exp(88) above 88."""
    x = np.float32(-88) if x < np.float32(-88) else x
    x = np.float32(88) if x > np.float32(88) else x
    n: Any = nearest(x * np.float32(1.44269504))  # type: ignore[call-arg]
    r = x - n * np.float32(0.693359375)
    r = r - n * np.float32(-2.12194440e-4)
    p = np.float32(1.9875691500e-4) * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    grown = r * r * p + r + np.float32(1)
    return grown * _as_float((np.int32(n) + np.int32(127)) << np.int32(23))


@inline
def sigmoid(x: Any) -> Any:
    return np.float32(1) / (np.float32(1) + exp(-x))
