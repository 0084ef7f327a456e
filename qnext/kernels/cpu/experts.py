"""The sparse half: router scores to chosen experts, and their SwiGLU products, for one token or thousands.

Called by `model`'s packed layers. The shared expert is one more expert that every token chooses. Every thread
takes a share of every expert's rows, so that a token's experts are added in one order by one thread: its
result is the same to the bit whoever runs beside it, however many threads there are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from numba import prange
from torch import Tensor

from ..packed import ROWS, Packed
from .activations import silu
from .dot import dot
from .inputs import quantise_row
from .jit import inline, kernel
from .linear import Inputs, is_coded, matrix, rows
from .simd import copy, fill, fma, load, store
from .workspace import Workspace

BLOCK = 256  # tokens of one expert that are multiplied at a time: they stay in a core's cache
MINUS_INFINITY = np.float32(-np.inf)


class Experts:
    """Where each expert's matrices are: `gate_up` [E], rows of gate and up in turn, 16 by 16; `down` [E]; and
    perhaps a shared expert of the same shape and kind, which comes last."""

    def __init__(self, gate_up: Packed, down: Packed, shared: tuple[Packed, Packed] | None) -> None:
        for own, other in zip((gate_up, down), shared or (), strict=False):
            assert own.data.shape[1:] == other.data.shape and own.kind == other.kind
            assert own.group == other.group
        self.gate_up, self.down = gate_up, down
        self.first = matrix(gate_up), self._addresses(gate_up, shared and shared[0])
        self.second = matrix(down), self._addresses(down, shared and shared[1])
        self.count = len(gate_up.data)
        self.shared = shared

    @staticmethod
    def _addresses(each: Packed, shared: Packed | None) -> np.ndarray:
        """Data and scales of each expert [E + 1, 2]."""
        found = [(data.data_ptr(), 0) for data in each.data]
        if each.scales.numel():
            found = [(data, scales.data_ptr()) for (data, _), scales in zip(found, each.scales, strict=True)]
        if shared is not None:
            found.append((shared.data.data_ptr(), shared.scales.data_ptr()))
        return np.asarray(found, np.int64)


class Choice(NamedTuple):
    """The experts [T, k + 1] of each token, the shared one last, and their weights; and all pairs sorted by
    expert, then token: where each expert's begin [E + 2], their tokens [P] and weights [P]."""

    experts: np.ndarray
    weights: np.ndarray
    begins: np.ndarray
    tokens: np.ndarray
    shares: np.ndarray


def choose(logits_TR: Tensor, experts: int, top_k: int, *, normalise: bool, shared: bool) -> Choice:
    """Router scores [T, R] fp32, R >= experts (+ 1: the shared expert's gate) -> who computes what.

    Of equals the lower number comes first."""
    tokens = len(logits_TR)
    assert logits_TR.dtype == torch.float32 and logits_TR.is_contiguous()
    assert top_k <= experts and logits_TR.shape[1] >= experts + shared
    picks = top_k + shared
    choice = Choice(
        np.empty((tokens, picks), np.int32),
        np.empty((tokens, picks), np.float32),
        np.empty(experts + 2, np.int64),
        np.empty(tokens * picks, np.int64),
        np.empty(tokens * picks, np.float32),
    )
    _choose(logits_TR.numpy(), experts, top_k, normalise, *choice)
    return choice


def mix(
    inputs: Inputs,
    choice: Choice,
    experts: Experts,
    residual_TH: Tensor,
    out_TH: Tensor,
    workspace: Workspace,
) -> Tensor:
    """`residual` plus each token's experts, weighted, into `out` [T, H] fp32."""
    tokens, pairs, threads = len(out_TH), len(choice.tokens), numba.get_num_threads()
    inner, outer = experts.gate_up.data.shape[1] // 2, experts.down.data.shape[1]
    coded = is_coded(inputs, experts.gate_up)
    assert residual_TH.shape == out_TH.shape == (tokens, ROWS * outer) and len(inputs.floats) >= tokens
    assert out_TH.dtype == residual_TH.dtype == torch.float32
    assert out_TH.is_contiguous() and residual_TH.is_contiguous()
    width, down = experts.down.width, experts.down
    assert width >= ROWS * inner
    group = down.group if coded else 0
    mid = Inputs(
        workspace.take("experts.floats", (pairs, width), torch.float32),
        workspace.take("experts.codes", (pairs, width if group else 0), torch.int8),
        workspace.take("experts.scales", (pairs, width // group if group else 0), torch.float32),
        workspace.take("experts.sums", (pairs, width // group if group else 0), torch.int32),
        group,
    )
    block, x = min(BLOCK, tokens), rows(inputs, coded)
    room = block * (x[0] * (2 if coded else 4) + 128)  # two tiles, then rows with their scales and sums
    scratch = workspace.take("experts.scratch", (threads * room,), torch.uint8)
    _mix(down.bits, coded)(
        x,
        rows(mid, coded),
        mid.floats.data_ptr(),
        choice.begins,
        choice.tokens,
        choice.shares,
        *experts.first,
        *experts.second,
        (tokens, inner, outer, threads, block, room),
        scratch.data_ptr(),
        residual_TH.data_ptr(),
        out_TH.data_ptr(),
    )
    return out_TH


@kernel()
def _choose(logits, experts, top_k, normalise, chosen, weights, begins, tokens, shares):  # type: ignore[no-untyped-def]
    """Softmax over all experts, the best `top_k` of each token; then a counting sort of all pairs."""
    shared = chosen.shape[1] - top_k
    begins[:] = 0
    scores = np.empty(experts, np.float32)
    for t in range(len(logits)):
        scores[:] = logits[t, :experts]
        for j in range(top_k):
            best = 0
            for e in range(1, experts):
                if scores[e] > scores[best]:
                    best = e
            chosen[t, j], weights[t, j] = best, scores[best]
            scores[best] = MINUS_INFINITY
        peak, among = weights[t, 0], np.float32(0)
        if normalise:
            for j in range(top_k):
                among += np.exp(weights[t, j] - peak)
        else:
            for e in range(experts):
                among += np.exp(logits[t, e] - peak)
        for j in range(top_k):
            weights[t, j] = np.exp(weights[t, j] - peak) / among
        if shared:
            chosen[t, top_k] = experts
            weights[t, top_k] = np.float32(1) / (np.float32(1) + np.exp(-logits[t, experts]))
        for j in range(top_k + shared):
            begins[chosen[t, j] + 1] += 1
    for e in range(experts + 1):
        begins[e + 1] += begins[e]
    ends = begins.copy()
    for t in range(len(logits)):
        for j in range(top_k + shared):
            e = chosen[t, j]
            tokens[ends[e]], shares[ends[e]] = t, weights[t, j]
            ends[e] += 1


@inline
def gather(coded, groups, x, tokens, first, count, to):  # type: ignore[no-untyped-def]
    """The rows of `tokens[first : first + count]` side by side at `to` -> where they are, for `dot.dot`."""
    width, at, scales, sums = x
    size = width if coded else 4 * width
    to_scales = to + count * size
    to_sums = to_scales + count * groups * 4
    for i in range(count):
        t = tokens[first + i]
        copy(to + i * size, at + t * size, size)
        if coded:
            copy(to_scales + i * groups * 4, scales + t * groups * 4, groups * 4)
            copy(to_sums + i * groups * 4, sums + t * groups * 4, groups * 4)
    return width, to, to_scales, to_sums


@inline
def widen(bits, coded, x, pairs, weight, part, floats, step):  # type: ignore[no-untyped-def]
    """silu(gate x) * (up x) for the pairs of one expert, in a thread's part of the columns, into `floats`."""
    tokens, _, begin, end = pairs
    low, high, block, here = part
    gates, ups = here, here + 64 * block
    for first in range(begin, end, block):
        count = min(block, end - first)
        own = gather(coded, weight[3], x, tokens, first, count, here + 128 * block)
        for b in range(low, high):
            for half in range(2):  # one place, compiled once
                dot(bits, coded, weight, 2 * b + half, own, 0, count, here + 64 * block * half, 64)
            for i in range(count):
                value = silu(load(gates + 64 * i)) * load(ups + 64 * i)
                store(floats + (first + i) * step + 64 * b, value)


@inline
def narrow(bits, coded, mid, pairs, weight, part, out, step):  # type: ignore[no-untyped-def]
    """Add one expert's down products, weighted, to its tokens' rows of `out`, in a part of the columns."""
    tokens, shares, begin, end = pairs
    low, high, block, here = part
    for first in range(begin, end, block):
        last = min(first + block, end)
        for b in range(low, high):
            dot(bits, coded, weight, b, mid, first, last, here, 64)
            for p in range(first, last):
                to = out + tokens[p] * step + 64 * b
                store(to, fma(fill(shares[p]), load(here + 64 * (p - first)), load(to)))


@cache
def _mix(bits: int, coded: bool) -> Callable[..., Any]:
    """Compiled for one kind of weights and of inputs."""

    @kernel(parallel=True)
    def mix(x, mid, floats, begins, tokens, shares, up, up_at, down, down_at, sizes, scratch, residual, out):  # type: ignore[no-untyped-def]
        count, inner, outer, threads, block, room = sizes
        width, codes, code_scales, code_sums = mid
        for thread in prange(threads):
            part = (
                inner * thread // threads,
                inner * (thread + 1) // threads,
                block,
                scratch + thread * room,
            )
            for e in range(len(begins) - 1):
                if begins[e] < begins[e + 1]:
                    pairs = (tokens, shares, begins[e], begins[e + 1])
                    weight = (up_at[e, 0], up_at[e, 1], up[2], up[3], up[4])
                    widen(bits, coded, x, pairs, weight, part, floats, 4 * width)
        for p in prange(len(tokens)):
            row = floats + 4 * p * width
            for i in range(inner, width // 16):
                store(row + 64 * i, fill(np.float32(0)))
            if coded:
                at = 4 * p * down[3]
                quantise_row(row, width, down[4], codes + p * width, code_scales + at, code_sums + at)
        for thread in prange(threads):
            low, high = outer * thread // threads, outer * (thread + 1) // threads
            for t in range(count):
                copy(out + 64 * (t * outer + low), residual + 64 * (t * outer + low), 64 * (high - low))
            part = (low, high, block, scratch + thread * room)
            for e in range(len(begins) - 1):
                if begins[e] < begins[e + 1]:
                    pairs = (tokens, shares, begins[e], begins[e + 1])
                    weight = (down_at[e, 0], down_at[e, 1], down[2], down[3], down[4])
                    narrow(bits, coded, mid, pairs, weight, part, out, 64 * outer)

    return mix
