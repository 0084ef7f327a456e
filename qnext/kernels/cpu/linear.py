"""Products of packed matrices and rows of tokens: one layout, one code for one token and for thousands.

Called by `model`'s packed layers. What is given is checked here, once for weights; compiled functions take
addresses. Invariant: a row of the result depends on its own row of the input alone, to the bit.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

import numba
import torch
from torch import Tensor

from ..packed import ROWS, Packed
from .dot import at_once, code_of, dot
from .inputs import Inputs, Source, float_bits, prepare_rows, prepare_share
from .jit import reader
from .simd import load, store
from .task import Task
from .tiles import DESK, tiled
from .unit import leave_unit, take_unit
from .workspace import Workspace

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
    source, desks = inputs.pending(), 0
    if coded and tiled(tokens):
        desks = inputs.workspace.address("tiles", numba.get_num_threads() * DESK)
    numbers = (
        *(inputs.by_codes if coded else inputs.by_floats),
        *weight.address,
        code_of(weight.bits, coded).address,
        tokens,
        weight.blocks,
        out_TN.data_ptr(),
        4 * out_TN.stride(0),
        more,
        more_step,
        desks,
    )
    job, done = array("q", (*source, *numbers)), not source.x
    inputs.workspace.run(product, job, weight.blocks, int(done))
    return out_TN


def normalise(x_TH: Tensor, norm: Tensor, eps: float, out_TH: Tensor, workspace: Workspace) -> Tensor:
    """Zero-centred RMS norm of rows [T, H] fp32 into `out`, whose rows may lie apart."""
    tokens, columns = x_TH.shape
    assert x_TH.dtype == out_TH.dtype == norm.dtype == torch.float32 and columns % 16 == 0
    assert x_TH.stride(1) == out_TH.stride(1) == 1 and out_TH.shape == x_TH.shape
    assert norm.stride() == (1,) and len(norm) == columns
    x, weight, out = (tensor.data_ptr() for tensor in (x_TH, norm, out_TH))
    steps, bits = (4 * x_TH.stride(0), 4 * out_TH.stride(0)), float_bits(eps)
    source = Source(x, steps[0], columns, columns, weight, bits, 0, out, steps[1], 0, 0, 0, tokens)
    workspace.run(prepare_rows, array("q", source), tokens)
    return out_TH


class Job(NamedTuple):
    """A product, as compiled code sees it: the inputs, the matrix and the code as `dot.dot` takes them,
    numbers of tokens and of blocks of rows, addresses and bytes from row to row. `add` is 0 where nothing is
    added, `desks` where no tiles are used."""

    width: int
    rows: int
    row_scales: int
    row_sums: int
    data: int
    scales: int
    size: int
    groups: int
    group: int
    code: int
    tokens: int
    blocks: int
    out: int
    step: int
    add: int
    add_step: int
    desks: int


read_job, AFTER_SOURCE = reader(Job), 8 * len(Source._fields)


def multiply(address: int, thread: int, threads: int) -> None:
    """A thread's blocks of rows. The job is a `Source`, then a `Job`."""
    job = read_job(address + AFTER_SOURCE)
    x = (job.width, job.rows, job.row_scales, job.row_sums)
    weight = (job.data, job.scales, job.size, job.groups, job.group)
    desk = job.desks + thread * DESK
    take_unit(job.desks)
    begin, end = job.blocks * thread // threads, job.blocks * (thread + 1) // threads
    for first in range(0, job.tokens, BLOCK):
        last = min(first + BLOCK, job.tokens)
        some = at_once(last - first, end - begin)
        for block in range(begin, end, some):
            at = job.out + first * job.step + 64 * block
            dot(job.code, weight, x, block, some, first, last, at, job.step, desk)
            if job.add:
                for t in range(first, last):
                    for b in range(block, block + some):
                        to = job.out + t * job.step + 64 * b
                        store(to, load(to) + load(job.add + t * job.add_step + 64 * b))
    leave_unit(job.desks)


product = Task(prepare_share, multiply)
