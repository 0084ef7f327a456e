"""Slow and obvious twins of the ops, one token and one head at a time, in the dtype that they are given
(tests give float64), and the rows and caches to try both on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from qnext.kernels.ops import DeltaCache
from qnext.model.packing import Packing


def distance(found: Tensor, wanted: Tensor, least: float = 1e-30) -> float:
    """Largest difference as a share of the largest value, or of `least` if none is as large (what is left of
    a sum whose parts cancel is only as exact as they are); NaN anywhere in `found` is infinitely far."""
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    if found.isnan().any():
        return float("inf")
    return float(
        (found.double() - wanted.double()).abs().max() / wanted.double().abs().max().clamp(min=least)
    )


class DeltaInputs(NamedTuple):
    """Inputs of the delta rule for T tokens."""

    q: Tensor
    k: Tensor
    v: Tensor
    g: Tensor
    beta: Tensor

    @classmethod
    def random(cls, total: int, heads: tuple[int, int, int, int], seed: int = 0) -> DeltaInputs:
        """`heads`: key heads, value heads, key width, value width."""
        rng = torch.Generator().manual_seed(seed)
        key_heads, value_heads, key_width, value_width = heads
        return cls(
            torch.randn(total, key_heads, key_width, generator=rng) * 3,
            torch.randn(total, key_heads, key_width, generator=rng) * 0.2,
            torch.randn(total, value_heads, value_width, generator=rng),
            -(torch.rand(total, value_heads, generator=rng) ** 3),
            torch.rand(total, value_heads, generator=rng),
        )

    def double(self) -> DeltaInputs:
        return DeltaInputs(*(x.double() for x in self))

    def part(self, start: int, stop: int) -> DeltaInputs:
        return DeltaInputs(*(x[start:stop] for x in self))


def delta_recurrence(inputs: DeltaInputs, state_VCU: Tensor) -> tuple[Tensor, Tensor]:
    """The delta rule of one sequence by its definition -> outputs [T, V, U], last state."""
    q, k = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in (inputs.q, inputs.k))
    group = inputs.v.shape[1] // q.shape[1]
    outs = []
    for t in range(len(q)):
        heads = []
        for head in range(inputs.v.shape[1]):
            key, query = k[t, head // group], q[t, head // group] / q.shape[-1] ** 0.5
            old = state_VCU[head] * inputs.g[t, head].exp()
            new = old + torch.outer(key, inputs.beta[t, head] * (inputs.v[t, head] - old.T @ key))
            heads.append((new, new.T @ query))
        state_VCU = torch.stack([new for new, _ in heads])
        outs.append(torch.stack([out for _, out in heads]))
    return torch.stack(outs), state_VCU


def convolution(x_TC: Tensor, weight_CW: Tensor, before_PC: Tensor) -> tuple[Tensor, Tensor]:
    """Causal convolution and SiLU of one sequence after its last W-1 inputs -> outputs, new last inputs."""
    history = torch.cat((before_PC, x_TC))
    width = weight_CW.shape[1]
    outs = []
    for t in range(len(x_TC)):
        total = sum(history[t + tap] * weight_CW[:, tap] for tap in range(width))
        assert isinstance(total, Tensor)
        outs.append(total / (1 + (-total).exp()))
    return torch.stack(outs), history[len(history) - width + 1 :]


def attention(q_LQD: Tensor, k_MGD: Tensor, v_MGD: Tensor, scale: float) -> Tensor:
    """The last L queries of a sequence of M keys, each seeing the keys up to its own -> [L, Q, D]."""
    earlier = len(k_MGD) - len(q_LQD)
    group = q_LQD.shape[1] // k_MGD.shape[1]
    out = torch.zeros_like(q_LQD)
    for i in range(len(q_LQD)):
        for head in range(q_LQD.shape[1]):
            keys, values = (x[: earlier + i + 1, head // group] for x in (k_MGD, v_MGD))
            weights = (keys @ q_LQD[i, head] * scale).exp()
            out[i, head] = weights / weights.sum() @ values
    return out


def experts(x_TH: Tensor, weights_Tk: Tensor, chosen_Tk: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Each token through each of its experts in turn."""
    rows = []
    for x, weights, chosen in zip(x_TH, weights_Tk, chosen_Tk, strict=True):
        rows.append(sum(w * swiglu(x, gate_up[e], down[e]) for w, e in zip(weights, chosen, strict=True)))
    return torch.stack(rows)


def swiglu(x_H: Tensor, gate_up_2IH: Tensor, down_HI: Tensor) -> Tensor:
    width = len(gate_up_2IH) // 2
    gate, up = gate_up_2IH[:width] @ x_H, gate_up_2IH[width:] @ x_H
    return down_HI @ (gate / (1 + (-gate).exp()) * up)


def delta_cache(
    slots: int, heads: tuple[int, int, int, int], drafts: int = 0, dtype: torch.dtype = torch.float32
) -> DeltaCache:
    """A cache of the delta rule, all NaN; `heads` as in `DeltaInputs.random`."""
    key_heads, value_heads, key_width, value_width = heads
    nan = float("nan")
    return DeltaCache(
        torch.full((slots, value_heads, key_width, value_width), nan),
        torch.full((slots, drafts, key_heads, key_width), nan, dtype=dtype),
        torch.full((slots, drafts, value_heads, value_width), nan, dtype=dtype),
        torch.full((slots, drafts, 2, value_heads), nan),
    )


def paged_row(lengths: Sequence[int], contexts: Sequence[int], page_size: int, seed: int = 0) -> Packing:
    """A row of sequences with pages and slots in disorder, among spare ones (`row_pages`, `row_slots`)."""
    rng = torch.Generator().manual_seed(seed)
    needs = [-(-(length + context) // page_size) for length, context in zip(lengths, contexts, strict=True)]
    places = torch.randperm(row_pages(lengths, contexts, page_size), generator=rng).tolist()
    pages = [[places.pop() for _ in range(need)] for need in needs]
    slots = torch.randperm(row_slots(lengths), generator=rng)[: len(lengths)].tolist()
    return Packing.cached(lengths, contexts, pages, slots, page_size)


def row_pages(lengths: Sequence[int], contexts: Sequence[int], page_size: int) -> int:
    """Pages in the cache that `paged_row` assumes."""
    return sum(-(-(n + c) // page_size) for n, c in zip(lengths, contexts, strict=True)) + 3


def row_slots(lengths: Sequence[int]) -> int:
    """Slots in the state that `paged_row` assumes."""
    return len(lengths) + 2
