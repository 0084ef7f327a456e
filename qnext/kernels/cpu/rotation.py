"""Cosines and sines of rotary positions.

Called by `model`'s packed network. Twin: `model.rotary.rotary_table`. Invariant: those of a position do not
depend on the others of its row.
"""

from __future__ import annotations

import math
from array import array
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .inputs import float_bits
from .jit import reader
from .simd import as_number, peek, poke, word
from .task import Task
from .workspace import Workspace


class Job(NamedTuple):
    """Addresses of the positions, for each token 8 bytes that say which frequencies it has, and these: `half`
    for tokens of 0, as many for those of 1; `which` is 0 if all have the first. Of the second kind, and
    where `which` is 0, what is made is multiplied by `scale`."""

    positions: int
    which: int
    frequencies: int
    half: int
    scale: int
    tokens: int
    cos: int
    sin: int


read_job = reader(Job)


def turn_share(address: int, thread: int, threads: int) -> None:
    """A thread's tokens."""
    job = read_job(address)
    for t in range(job.tokens * thread // threads, job.tokens * (thread + 1) // threads):
        position, scale, table = (
            np.float32(word(job.positions + 8 * t)),
            as_number(job.scale),
            job.frequencies,
        )
        if job.which:
            kind = word(job.which + 8 * t)
            scale, table = scale if kind else np.float32(1), table + 4 * kind * job.half
        for i in range(job.half):
            angle = np.float64(position * peek(table + 4 * i))
            at = 4 * (t * job.half + i)
            poke(job.cos + at, np.float32(math.cos(angle)) * scale)
            poke(job.sin + at, np.float32(math.sin(angle)) * scale)


turning = Task(turn_share)


def turn(
    positions_T: Tensor,
    which_T: Tensor | None,
    frequencies_FR: Tensor,
    scale: float,
    out: tuple[Tensor, Tensor],
    workspace: Workspace,
) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, R] fp32 of `positions` into `out`. Without `which` int64 [T], all have the first
    frequencies and the scale; with it the second ones (1) have it."""
    tokens, half = len(positions_T), frequencies_FR.shape[1]
    assert positions_T.dtype == torch.int64 and positions_T.is_contiguous()
    assert frequencies_FR.dtype == torch.float32 and frequencies_FR.is_contiguous()
    if which_T is not None:
        assert which_T.dtype == torch.int64 and which_T.shape == (tokens,) and len(frequencies_FR) == 2
    for each in out:
        assert each.shape == (tokens, half) and each.dtype == torch.float32 and each.is_contiguous()
    job = Job(
        positions_T.data_ptr(),
        0 if which_T is None else which_T.data_ptr(),
        frequencies_FR.data_ptr(),
        half,
        float_bits(scale),
        tokens,
        *(each.data_ptr() for each in out),
    )
    workspace.run(turning, array("q", job), tokens)
    return out
