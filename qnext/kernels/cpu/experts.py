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
from .inputs import Inputs, quantise_row
from .jit import inline, kernel
from .linear import Matrix
from .simd import copy, fill, fma, load, store
from .workspace import Workspace

BLOCK = 256  # tokens of one expert that are multiplied at a time: they stay in a core's cache
FEW = 16  # tokens whose experts one thread chooses sooner than two


class Experts:
    """Where each expert's matrices are: `gate_up` [E], rows of gate and up in turn, 16 by 16; `down` [E]; and
    perhaps a shared expert of the same shape and kind, which comes last."""

    def __init__(self, gate_up: Packed, down: Packed, shared: tuple[Packed, Packed] | None) -> None:
        for own, other in zip((gate_up, down), shared or (), strict=False):
            assert own.data.shape[1:] == other.data.shape
            assert (own.kind, own.group) == (other.kind, other.group)
        self.gate_up, self.down, self.shared = Matrix(gate_up), Matrix(down), shared
        self.first, self.second = (
            _addresses(each, shared and shared[i]) for i, each in enumerate((gate_up, down))
        )
        self.count = len(gate_up.data)


def _addresses(each: Packed, shared: Packed | None) -> np.ndarray:
    """Of data and scales of each expert [E + 1, 2]."""
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
    gate_up, down, tokens, pairs = experts.gate_up, experts.down, inputs.tokens, len(choice.tokens)
    inner, outer, threads = gate_up.blocks // 2, down.blocks, numba.get_num_threads()
    coded = gate_up.coded(inputs.made())
    assert residual_TH.shape == out_TH.shape == (tokens, down.columns) and down.width >= ROWS * inner
    assert out_TH.dtype == residual_TH.dtype == torch.float32
    assert out_TH.is_contiguous() and residual_TH.is_contiguous()
    width, groups = down.width, down.address[3] if coded else 0
    floats = workspace.take("experts.floats", (pairs, width), torch.float32).data_ptr()
    mid = (
        width,
        workspace.take("experts.codes", (pairs, width), torch.int8).data_ptr() if coded else floats,
        workspace.take("experts.scales", (pairs, groups), torch.float32).data_ptr(),
        workspace.take("experts.sums", (pairs, groups), torch.int32).data_ptr(),
    )
    block = min(BLOCK, tokens)
    room = block * (
        inputs.width * (2 if coded else 4) + 128
    )  # two tiles, then rows with their scales and sums
    _mix(down.bits, coded)(
        inputs.by_codes if coded else inputs.by_floats,
        mid,
        floats,
        choice.begins,
        choice.tokens,
        choice.shares,
        gate_up.address,
        experts.first,
        down.address,
        experts.second,
        (tokens, inner, outer, threads, block, room),
        workspace.take("experts.scratch", (threads * room,), torch.uint8).data_ptr(),
        residual_TH.data_ptr(),
        out_TH.data_ptr(),
    )
    return out_TH


@kernel(parallel=True)
def _choose(logits, experts, top_k, normalise, chosen, weights, begins, tokens, shares):  # type: ignore[no-untyped-def]
    """The best `top_k` of each token, then a counting sort of all pairs."""
    picks = chosen.shape[1]
    if len(logits) < FEW:
        for t in range(len(logits)):
            choose_row(logits[t], experts, top_k, normalise, chosen[t], weights[t])
    else:
        for t in prange(len(logits)):
            choose_row(logits[t], experts, top_k, normalise, chosen[t], weights[t])
    begins[:] = 0
    for t in range(len(logits)):
        for j in range(picks):
            begins[chosen[t, j] + 1] += 1
    for e in range(experts + 1):
        begins[e + 1] += begins[e]
    ends = begins.copy()
    for t in range(len(logits)):
        for j in range(picks):
            e = chosen[t, j]
            tokens[ends[e]], shares[ends[e]] = t, weights[t, j]
            ends[e] += 1


@inline
def choose_row(scores, experts, top_k, normalise, chosen, weights):  # type: ignore[no-untyped-def]
    """Softmax over all experts of one token, its best `top_k`, and the shared expert where there is room."""
    for j in range(top_k):
        best = -1
        for e in range(experts):
            if best < 0 or scores[e] > scores[best]:
                taken = False
                for i in range(j):
                    taken |= chosen[i] == e
                if not taken:
                    best = e
        chosen[j] = best
    peak, among = scores[chosen[0]], np.float32(0)
    if normalise:
        for j in range(top_k):
            among += np.exp(scores[chosen[j]] - peak)
    else:
        for e in range(experts):
            among += np.exp(scores[e] - peak)
    for j in range(top_k):
        weights[j] = np.exp(scores[chosen[j]] - peak) / among
    if len(chosen) > top_k:
        chosen[top_k] = experts
        weights[top_k] = np.float32(1) / (np.float32(1) + np.exp(-scores[experts]))


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
