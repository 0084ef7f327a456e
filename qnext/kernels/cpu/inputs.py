"""Inputs of matrix products: rows that were perhaps normalised first, in fp32 and in codes of 8 bits.

Made by `model`'s packed layers, read by every product of the same input. Invariant: a row depends on that row
alone.
"""

from __future__ import annotations

from array import array
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .jit import inline, reader
from .simd import (
    absolute,
    as_number,
    copy,
    fill,
    fma,
    larger,
    largest,
    load,
    nearest,
    poke,
    poke_i32,
    store,
    store_i8,
    to_int,
    total,
    total_i32,
)
from .task import Task
from .tiles import SPARE
from .workspace import Workspace

ONE, ZERO = np.float32(1), np.float32(0)


@inline
def quantise_row(floats, columns, group, codes, scales, sums):  # type: ignore[no-untyped-def]
    """Round `columns` floats (whole groups) to codes of -127 to 127, with each group's scale and sum."""
    for g in range(columns // group):
        peak = fill(ZERO)
        for i in range(group // 16):
            peak = larger(peak, absolute(load(floats + 64 * i)))
        top = largest(peak)
        inverse = fill(np.float32(127) / top if top > ZERO else ZERO)
        together = to_int(fill(ZERO))
        for i in range(group // 16):
            rounded = to_int(nearest(load(floats + 64 * i) * inverse))
            store_i8(codes + 16 * i, rounded)
            together = together + rounded
        poke(scales + 4 * g, top / np.float32(127))
        poke_i32(sums + 4 * g, total_i32(together))
        floats += 4 * group
        codes += group


@inline
def normalise_row(x, columns, weight, eps, out):  # type: ignore[no-untyped-def]
    """Zero-centred RMS norm of one row of whole vectors."""
    squares = fill(ZERO)
    for i in range(columns // 16):
        value = load(x + 64 * i)
        squares = fma(value, value, squares)
    factor = fill(ONE / np.sqrt(total(squares) / np.float32(columns) + eps))
    for i in range(columns // 16):
        store(out + 64 * i, load(x + 64 * i) * factor * (load(weight + 64 * i) + fill(ONE)))


@inline
def prepare_row(source, t):  # type: ignore[no-untyped-def]
    """Row t of a `Source`: normalised where there is a `norm`, as fp32 where there are `floats` (else the row
    is used as it is), and as codes where `group` is not 0."""
    row = source.x + t * source.step
    if source.floats != 0:
        to = source.floats + t * source.floats_step
        if source.norm != 0:
            normalise_row(row, source.columns, source.norm, as_number(source.eps), to)
        else:
            copy(to, row, 4 * source.columns)
        for i in range(source.columns // 16, source.width // 16):
            store(to + 64 * i, fill(ZERO))
        row = to
    if source.group != 0:
        groups = source.width // source.group
        at = 4 * t * groups
        codes = source.codes + t * source.width
        quantise_row(row, source.width, source.group, codes, source.scales + at, source.sums + at)


class Source(NamedTuple):
    """Addresses of rows, `step` bytes apart, and of what is to be made of them, fp32 `floats_step` bytes
    apart; 0 for what is not there. `eps` is the bits of a float."""

    x: int
    step: int
    columns: int
    width: int
    norm: int
    eps: int
    group: int
    floats: int
    floats_step: int
    codes: int
    scales: int
    sums: int
    tokens: int


read_source = reader(Source)


def prepare_share(job: int, thread: int, threads: int) -> None:
    """A thread's rows of the `Source` at an address: the first phase of whatever reads them."""
    source = read_source(job)
    for t in range(source.tokens * thread // threads, source.tokens * (thread + 1) // threads):
        prepare_row(source, t)


prepare_rows = Task(prepare_share)
NOTHING = Source(*[0] * len(Source._fields))


@cache
def float_bits(value: float) -> int:
    """Of a float32, as jobs hold them."""
    return int(np.float32(value).view(np.int32))


class Inputs:
    """Rows [T, H] fp32 as inputs of matrices of `width` columns: normalised by `norm` [H] first, if it is
    given; in codes with a scale for each `group` columns, unless that is 0.

    The first product that reads them makes them, in the same call. They live in `workspace` until another
    `Inputs` of that `name` is made.
    """

    def __init__(
        self,
        x_TH: Tensor,
        width: int,
        group: int,
        workspace: Workspace,
        *,
        norm: Tensor | None = None,
        eps: float = 0.0,
        name: str = "inputs",
    ) -> None:
        tokens, columns = x_TH.shape
        assert x_TH.dtype == torch.float32 and x_TH.stride(1) == 1
        assert columns % 16 == 0 == width % 16 and width >= columns and (not group or width % group == 0)
        assert norm is None or (
            norm.dtype == torch.float32 and norm.stride() == (1,) and len(norm) == columns
        )
        self.tokens, self.width, self.group, self.workspace = tokens, width, group, workspace
        as_is = norm is None and width == columns and x_TH.is_contiguous()
        self.floats = x_TH if as_is else workspace.take(f"{name}.floats", (tokens, width), torch.float32)
        self.codes = self.scales = self.sums = None
        self.by_floats = self.by_codes = (width, self.floats.data_ptr(), 0, 0)
        codes = 0, 0, 0
        if group:
            groups = width // group
            self.codes = workspace.take(f"{name}.codes", (tokens, width), torch.int8, SPARE * width)
            self.scales = workspace.take(
                f"{name}.scales", (tokens, groups), torch.float32, 4 * SPARE * groups
            )
            self.sums = workspace.take(f"{name}.sums", (tokens, groups), torch.int32)
            codes = self.codes.data_ptr(), self.scales.data_ptr(), self.sums.data_ptr()
            self.by_codes = (width, *codes)
        self._source = NOTHING
        if group or not as_is:
            weight = 0 if norm is None else norm.data_ptr()
            floats = 0 if as_is else self.floats.data_ptr()
            step, bits = 4 * x_TH.stride(0), float_bits(eps)
            self._source = Source(
                x_TH.data_ptr(), step, columns, width, weight, bits, group, floats, 4 * width, *codes, tokens
            )

    def pending(self) -> Source:
        """What is still to be done: for the caller to do, so that there is nothing the next time."""
        source, self._source = self._source, NOTHING
        return source

    def made(self) -> Inputs:
        """The same, made by now."""
        source = self.pending()
        if source.x:
            self.workspace.run(prepare_rows, array("q", source), self.tokens)
        return self
