"""Products of packed matrices and rows of tokens: one layout, one code for one token and for thousands.

Called by `model`'s packed layers. What is given is checked here, once for weights; compiled functions take
addresses. Invariant: a row of the result depends on its own row of the input alone, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from numba import prange
from torch import Tensor

from ..packed import ROWS, Packed
from .dot import dot
from .inputs import Inputs, Source, prepare_row, prepare_rows
from .jit import kernel
from .simd import load, store

BLOCK = 256  # tokens whose rows stay in a core's cache while the weights go by


class Matrix:
    """A packed matrix, or several of one shape, and what compiled code wants of it."""

    def __init__(self, packed: Packed) -> None:
        data, scales = packed.data, packed.scales
        assert data.is_contiguous() and scales.is_contiguous()
        self.packed, self.bits, self.width, self.group = packed, packed.bits, packed.width, packed.group
        self.blocks, lines, line = data.shape[-3:]
        self.columns = ROWS * self.blocks  # of the result
        # see `dot.dot`
        self.address = data.data_ptr(), scales.data_ptr(), lines * line, self.width // self.group, self.group

    def coded(self, inputs: Inputs) -> bool:
        """Whether codes are multiplied by codes. Asserts that the inputs fit."""
        assert inputs.width == self.width
        return self.bits < 16 and inputs.group == self.group


def linear(inputs: Inputs, weight: Matrix, out_TN: Tensor, *, add: Tensor | None = None) -> Tensor:
    """`inputs @ weight.T` (+ `add` [T, N'], or [N']) into `out` [T, N'] fp32; N' is whole blocks of 16 rows.

    Codes are multiplied by codes if the inputs have them in the weight's groups, by floats otherwise.
    """
    tokens, coded = inputs.tokens, weight.coded(inputs)
    assert (
        out_TN.shape == (tokens, weight.columns) and out_TN.dtype == torch.float32 and out_TN.stride(1) == 1
    )
    more, more_step = 0, 0
    if add is not None:
        assert add.dtype == torch.float32 and add.stride(-1) == 1 and add.shape[-1] == weight.columns
        more, more_step = add.data_ptr(), 4 * add.stride(0) if add.ndim == 2 else 0
    _linear(weight.bits, coded)(
        inputs.pending(),
        weight.address,
        inputs.by_codes if coded else inputs.by_floats,
        tokens,
        weight.blocks,
        out_TN.data_ptr(),
        4 * out_TN.stride(0),
        more,
        more_step,
    )
    return out_TN


def normalise(x_TH: Tensor, norm: Tensor, eps: float, out_TH: Tensor) -> Tensor:
    """Zero-centred RMS norm of rows [T, H] fp32 into `out`."""
    tokens, columns = x_TH.shape
    assert x_TH.dtype == out_TH.dtype == norm.dtype == torch.float32 and columns % 16 == 0
    assert x_TH.stride(1) == 1 and out_TH.shape == x_TH.shape and out_TH.is_contiguous()
    assert norm.stride() == (1,) and len(norm) == columns
    x, weight, out = (tensor.data_ptr() for tensor in (x_TH, norm, out_TH))
    prepare_rows(Source(x, 4 * x_TH.stride(0), columns, columns, weight, eps, 0, out, 0, 0, 0), tokens)
    return out_TH


@cache
def _linear(bits: int, coded: bool) -> Callable[..., Any]:
    """Compiled for one kind of weight and of input."""

    @kernel(parallel=True)
    def multiply(source, weight, x, tokens, blocks, out, step, add, add_step):  # type: ignore[no-untyped-def]
        if source.x != 0:
            for t in prange(tokens):
                prepare_row(source, t)
        for first in range(0, tokens, BLOCK):
            last = min(first + BLOCK, tokens)
            for block in prange(blocks):
                at = out + first * step + 64 * block
                dot(bits, coded, weight, block, x, first, last, at, step)
                if add:
                    for t in range(first, last):
                        to = out + t * step + 64 * block
                        store(to, load(to) + load(add + t * add_step + 64 * block))

    return multiply
