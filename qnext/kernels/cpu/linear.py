"""Products of packed matrices and rows of tokens: one layout, one code for one token and for thousands.

Called by `model`'s packed layers. `prepare` makes rows ready, `linear` multiplies them. These two check what
they are given; the compiled functions take addresses. Invariant: a row of the result depends on its own row
of the input alone, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from numba import prange
from torch import Tensor

from ..packed import Packed
from .dot import dot
from .inputs import prepare_rows
from .jit import kernel
from .simd import load, store
from .workspace import Workspace

BLOCK = 256  # tokens whose rows stay in a core's cache while the weights go by


class Inputs(NamedTuple):
    """Rows of tokens, ready to be multiplied: fp32 [T, W], and unless `group` is 0 codes int8 [T, W] with
    scales fp32 and sums int32 [T, W / group]."""

    floats: Tensor
    codes: Tensor
    scales: Tensor
    sums: Tensor
    group: int


def prepare(
    x_TH: Tensor,
    width: int,
    group: int,
    workspace: Workspace,
    *,
    norm: Tensor | None = None,
    eps: float = 0.0,
    name: str = "inputs",
) -> Inputs:
    """Rows [T, H] fp32 (contiguous rows) as inputs of `width` >= H columns, normalised by `norm` [H] first if
    it is given; in codes with a scale for each `group` columns, unless that is 0. They live in `workspace`
    until the next call with that `name`."""
    tokens, columns = x_TH.shape
    assert x_TH.dtype == torch.float32 and x_TH.stride(1) == 1 and columns % 16 == 0 and width % 16 == 0
    assert norm is None or (norm.dtype == torch.float32 and norm.is_contiguous() and len(norm) == columns)
    assert width >= columns and (not group or width % group == 0)
    as_is = norm is None and width == columns and x_TH.is_contiguous()
    floats = x_TH if as_is else workspace.take(f"{name}.floats", (tokens, width), torch.float32)
    groups = width // group if group else 0
    codes = workspace.take(f"{name}.codes", (tokens, width if group else 0), torch.int8)
    scales = workspace.take(f"{name}.scales", (tokens, groups), torch.float32)
    sums = workspace.take(f"{name}.sums", (tokens, groups), torch.int32)
    prepare_rows(
        x_TH.data_ptr(),
        4 * x_TH.stride(0),
        tokens,
        columns,
        width,
        0 if norm is None else norm.data_ptr(),
        eps,
        group,
        0 if as_is else floats.data_ptr(),
        codes.data_ptr(),
        scales.data_ptr(),
        sums.data_ptr(),
    )
    return Inputs(floats, codes, scales, sums, group)


def normalise(x_TH: Tensor, norm: Tensor, eps: float, out_TH: Tensor) -> Tensor:
    """Zero-centred RMS norm of rows [T, H] fp32 into `out`."""
    tokens, columns = x_TH.shape
    assert x_TH.dtype == out_TH.dtype == norm.dtype == torch.float32 and columns % 16 == 0
    assert x_TH.stride(1) == 1 and out_TH.shape == x_TH.shape and out_TH.is_contiguous()
    assert norm.is_contiguous() and len(norm) == columns
    out, step, weight = out_TH.data_ptr(), 4 * x_TH.stride(0), norm.data_ptr()
    prepare_rows(x_TH.data_ptr(), step, tokens, columns, columns, weight, eps, 0, out, 0, 0, 0)
    return out_TH


def linear(inputs: Inputs, weight: Packed, out_TN: Tensor, *, add: Tensor | None = None) -> Tensor:
    """`inputs @ weight.T` (+ `add` [T, N'], or [N']) into `out` [T, N'] fp32; N' is whole blocks of 16 rows.

    Codes are multiplied by codes if the inputs have them in the weight's groups, by floats otherwise.
    """
    tokens, blocks = len(out_TN), weight.data.shape[0]
    coded = is_coded(inputs, weight)
    assert out_TN.dtype == torch.float32 and out_TN.stride(1) == 1 and out_TN.shape[1] == 16 * blocks
    assert len(inputs.floats) >= tokens
    assert add is None or (
        add.dtype == torch.float32 and add.stride(-1) == 1 and add.shape[-1] == 16 * blocks
    )
    _linear(weight.bits, coded)(
        matrix(weight),
        rows(inputs, coded),
        tokens,
        blocks,
        out_TN.data_ptr(),
        4 * out_TN.stride(0),
        0 if add is None else add.data_ptr(),
        0 if add is None or add.ndim == 1 else 4 * add.stride(0),
    )
    return out_TN


def is_coded(inputs: Inputs, weight: Packed) -> bool:
    """Whether codes are multiplied by codes. Asserts that inputs and weight fit together."""
    width = weight.width
    assert inputs.floats.shape[1] == width and inputs.floats.is_contiguous()
    return weight.bits < 16 and inputs.group == weight.group


def matrix(weight: Packed) -> tuple[int, int, int, int, int]:
    """What `dot.dot` calls a matrix."""
    data, scales = weight.data, weight.scales
    assert data.is_contiguous() and scales.is_contiguous()
    size = data.shape[-1] * data.shape[-2]
    return data.data_ptr(), scales.data_ptr(), size, weight.width // weight.group, weight.group


def rows(inputs: Inputs, coded: bool) -> tuple[int, int, int, int]:
    """What `dot.dot` calls x."""
    first = inputs.codes if coded else inputs.floats
    return inputs.floats.shape[1], first.data_ptr(), inputs.scales.data_ptr(), inputs.sums.data_ptr()


@cache
def _linear(bits: int, coded: bool) -> Callable[..., Any]:
    """Compiled for one kind of weight and of input."""

    @kernel(parallel=True)
    def multiply(weight, x, tokens, blocks, out, step, add, add_step):  # type: ignore[no-untyped-def]
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
