"""Rows of the embedding, looked up by token ids: what a network begins with.

Called by `model`'s packed network. Twin: `torch.nn.functional.embedding`.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

import torch
from torch import Tensor

from .jit import reader
from .simd import load, load_bf16, store, word
from .task import Task
from .workspace import Workspace

DTYPES = (torch.bfloat16, torch.float32)


class Job(NamedTuple):
    """Addresses of the ids, the table and the rows to be made; bytes of a row of the table."""

    ids: int
    table: int
    step: int
    rounded: int
    columns: int
    tokens: int
    out: int


read_job = reader(Job)


def embed_share(address: int, thread: int, threads: int) -> None:
    """A thread's tokens."""
    job = read_job(address)
    for t in range(job.tokens * thread // threads, job.tokens * (thread + 1) // threads):
        row, out = job.table + word(job.ids + 8 * t) * job.step, job.out + 4 * t * job.columns
        for i in range(0, job.columns, 16):
            store(out + 4 * i, load_bf16(row + 2 * i) if job.rounded else load(row + 4 * i))


embedding = Task(embed_share)


def embed(ids_T: Tensor, table_VH: Tensor, out_TH: Tensor, workspace: Workspace) -> Tensor:
    """Rows of a table of bf16 or fp32 -> `out` fp32. IndexError for an id that it does not have."""
    tokens, (rows, columns) = len(ids_T), table_VH.shape
    assert ids_T.dtype == torch.int64 and ids_T.is_contiguous() and ids_T.is_cpu
    assert table_VH.dtype in DTYPES and table_VH.stride() == (columns, 1) and columns % 16 == 0
    assert out_TH.shape == (tokens, columns) and out_TH.dtype == torch.float32 and out_TH.is_contiguous()
    check(ids_T, rows)
    job = Job(
        ids_T.data_ptr(),
        table_VH.data_ptr(),
        columns * table_VH.itemsize,
        table_VH.dtype == torch.bfloat16,
        columns,
        tokens,
        out_TH.data_ptr(),
    )
    workspace.run(embedding, array("q", job), tokens)
    return out_TH


def check(ids_T: Tensor, rows: int) -> None:
    """Raises IndexError for an id that a table of so many rows does not have."""
    ids = ids_T.tolist()  # a list: most are short, and numpy takes several times as long for them
    if ids and not 0 <= min(ids) <= max(ids) < rows:
        raise IndexError(f"a token id is not one of 0 to {rows - 1}")
