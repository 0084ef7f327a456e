"""The gated delta rule of whole sequences and its gradient, a chunk of every sequence at a time.

With G the sums of log-decays in a chunk, S the state before it, A_ij = beta_i e^(G_i - G_j) k_i k_j (j < i)
and P_ij = e^(G_i - G_j) q_i k_j (j <= i):
    X = beta (V - e^G K S);  R = (I + A)^-1 X;  O = e^G Q S + P R;  S <- e^(G_L) S + K^T e^(G_L - G) R
Matrix products are torch's, in bf16 under autocast; all else is in `delta_loops`, in fp32. The state is
always carried on in fp32. The twin is the step form of `reference`.
Legend: N sequences that have such a chunk, L its tokens, K/V key and value heads, F = V / K, C/U their
widths.
Queries and keys of a chunk lie one after the other [N, K, 2L, C]; what is [N, K, .., FU] has the value
heads of a key head beside each other, so that one product serves them all.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .. import reference
from ..ops import DeltaCache, Row
from . import delta_loops as loops
from .numbers import array, computes, matmul_dtype, rows

CHUNK = 64


def gated_delta_rule(
    q_TKC: Tensor,
    k_TKC: Tensor,
    v_TVU: Tensor,
    g_TV: Tensor,
    beta_TV: Tensor,
    row: Row,
    cache: DeltaCache | None,
) -> Tensor:
    """See `Ops.gated_delta_rule`."""
    if cache is not None or not computes(q_TKC, k_TKC, v_TVU, g_TV, beta_TV):
        return reference.gated_delta_rule(q_TKC, k_TKC, v_TVU, g_TV, beta_TV, row, cache)
    found: Tensor = _DeltaRule.apply(q_TKC, k_TKC, v_TVU, g_TV, beta_TV, row)
    return found


class _Turn(NamedTuple):
    """What the backward needs of a chunk of every sequence."""

    spans: Any  # first token and end of each chunk [N, 2]
    sums: Any  # G [N, V, L] float64
    qk: Tensor  # normalised queries and keys [N, K, 2L, C]
    products: Tensor  # of both with the keys [N, K, 2L, L]
    weights: Tensor  # P [N, V, L, L]
    inverse: Tensor  # (I + A)^-1 [N, V, L, L]
    state: Tensor  # S [N, K, C, FU]
    reads: Tensor  # what queries and keys find in it [N, K, 2L, FU]
    fresh: Tensor  # R [N, V, L, U]


class _DeltaRule(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, row: Row) -> Tensor:
        ctx.inputs = q, k, v, g.float().contiguous(), beta.float().contiguous()
        ctx.dtype = matmul_dtype(q)
        out = torch.empty(v.shape)
        keys, width, parts = k.shape[1], k.shape[2], v.shape[1] // k.shape[1] * v.shape[2]
        state = torch.zeros(len(row.lengths), keys, width, parts)
        ctx.turns = []
        with torch.autocast("cpu", enabled=False):
            for spans in _spans(row):
                ctx.turns.append(_take_in(ctx.inputs, spans, state[: len(spans)], out, ctx.dtype))
        if not any(ctx.needs_input_grad):
            ctx.turns.clear()
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, g, beta = ctx.inputs
        found = tuple(torch.empty(x.shape, dtype=x.dtype) for x in (q, k, v, g, beta))
        grad = grads[0].float().contiguous()
        first = ctx.turns[0].state
        state_grad = torch.zeros(first.shape)
        for turn in reversed(ctx.turns):
            _take_back(ctx.inputs, turn, state_grad[: len(turn.spans)], grad, found)
        return *found, None


def _spans(row: Row) -> list[Any]:
    """Of each round, the first token and the end of a chunk of every sequence that has one, longest first."""
    table = np.array(sorted(zip(row.starts, row.lengths, strict=True), key=lambda each: -each[1]))
    begins, ends = table[:, 0], table.sum(1)
    turns = []
    for at in range(0, int(table[0, 1]), CHUNK):
        active = begins + at < ends
        turns.append(np.stack((begins + at, np.minimum(begins + at + CHUNK, ends)), 1)[active])
    return turns


def _take_in(inputs: tuple[Tensor, ...], spans: Any, state: Tensor, out: Tensor, dtype: torch.dtype) -> _Turn:
    """Outputs of a chunk of every sequence, and their states [N, K, C, FU] fp32 moved on, in place."""
    q, k, v, g, beta = inputs
    (count, keys, width, parts), heads, size = state.shape, v.shape[1], v.shape[2]
    qk = torch.empty(count, keys, 2 * CHUNK, width, dtype=dtype)
    loops.lay_out(*rows(q), *rows(k), spans, array(qk))
    sums = np.empty((count, heads, CHUNK))
    loops.add_up(array(g), spans, sums)
    products = _mm(qk, qk[:, :, CHUNK:].mT)
    weights, inverse = (torch.empty(count, heads, CHUNK, CHUNK, dtype=dtype) for _ in range(2))
    loops.weigh(array(products), sums, array(beta), spans, array(weights), array(inverse))
    held = state.to(dtype, copy=True)
    reads = _mm(qk, held)
    aims = torch.empty(count, heads, CHUNK, size, dtype=dtype)
    loops.aim(array(reads), *rows(v), sums, array(beta), spans, array(aims))
    fresh = _mm(inverse, aims)
    loops.write_out(array(reads), array(_mm(weights, fresh)), sums, spans, array(out))
    kept = torch.empty(count, keys, CHUNK, parts, dtype=dtype)
    loops.fade(array(fresh), sums, array(kept))
    loops.carry(array(_mm(qk[:, :, CHUNK:].mT, kept)), sums, array(state))
    return _Turn(spans, sums, qk, products, weights, inverse, held, reads, fresh)


def _take_back(
    inputs: tuple[Tensor, ...], turn: _Turn, state_grad: Tensor, grad: Tensor, found: tuple[Tensor, ...]
) -> None:
    """Gradients of the inputs of a chunk of every sequence, into `found`, from those of the states after it
    [N, K, C, FU], which become those of the states before it, in place."""
    _, _, v, _, beta = inputs
    spans, sums, qk, products, weights, inverse, held, reads, fresh = turn
    (count, keys, _, parts), dtype = state_grad.shape, qk.dtype
    keys_only, state_slope = qk[:, :, CHUNK:], state_grad.to(dtype)
    sums_grad, beta_grad = np.zeros(sums.shape), np.zeros(sums.shape)

    # gradients of the aims X over those of the outputs O [N, V, 2L, U]; of the reads [N, K, 2L, FU]
    slopes = torch.empty(count, v.shape[1], 2 * CHUNK, v.shape[2], dtype=dtype)
    reads_grad = torch.empty(count, keys, 2 * CHUNK, parts, dtype=dtype)
    loops.lay_grads(array(grad), sums, spans, array(reads), array(slopes), array(reads_grad), sums_grad)
    direct = _mm(weights.mT, slopes[:, :, CHUNK:])
    kept, fresh_grad = torch.empty(count, keys, CHUNK, parts, dtype=dtype), torch.empty_like(fresh)
    carried = _mm(keys_only, state_slope)
    loops.join(*map(array, (direct, carried, fresh)), sums, array(fresh_grad), array(kept), sums_grad)
    slopes[:, :, :CHUNK] = _mm(inverse.mT, fresh_grad)
    loops.part(
        array(slopes), array(reads), *rows(v), sums, array(beta), spans, *map(array, (reads_grad, found[2])),
        sums_grad, beta_grad,
    )  # fmt: skip
    products_grad = torch.empty_like(products)
    loops.weigh_back(
        array(_mm(slopes, fresh.mT)), array(products), sums, array(beta), spans, array(products_grad),
        sums_grad, beta_grad,
    )  # fmt: skip
    # what queries and keys [N, K, 2L, C] get from the state and from one another, and keys beside that
    pulls = _mm(reads_grad, held.mT) + _mm(products_grad, keys_only)
    more = _mm(products_grad.mT, qk) + _mm(kept, state_slope.mT)
    loops.carry_back(array(_mm(qk.mT, reads_grad)), array(held), sums, array(state_grad), sums_grad)
    loops.lay_back(
        *rows(inputs[0]), *rows(inputs[1]), *map(array, (pulls, more)), spans, *map(array, found[:2])
    )
    loops.take_apart(sums_grad, beta_grad, spans, *map(array, found[3:]))


def _mm(a: Tensor, b: Tensor) -> Tensor:
    """[N, H, I, J] @ [N, H, J, K]."""
    found: Tensor = torch.bmm(a.flatten(0, 1), b.flatten(0, 1)).unflatten(0, a.shape[:2])
    return found
