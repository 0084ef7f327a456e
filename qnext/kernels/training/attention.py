"""Causal attention within each sequence and its gradient, a block of queries at a time: scores are made again
in the backward and never kept.

Sequences are filled up with zeros to a multiple of PAD, since oneDNN prepares itself for every new shape:
no real query sees what comes behind it, and what unreal ones get is dropped.
Legend: T tokens, Q/G query and KV heads, F = Q / G, D their width, B rows of a block (F for each of its
tokens), M keys that a block sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import reference
from ..ops import Row
from .numbers import array, computes, exp, loops, put, wide, zero

BLOCK, PAD = 128, 64  # tokens


def attention(
    q_TQD: Tensor, k_TGD: Tensor, v_TGD: Tensor, row: Row, cache: tuple[Tensor, Tensor] | None, scale: float
) -> Tensor:
    """See `Ops.attention`. Scores are fp32; the other products are of the inputs' dtype."""
    if cache is not None or not computes(q_TQD, k_TGD, v_TGD):
        return reference.attention(q_TQD, k_TGD, v_TGD, row, cache, scale)
    found: Tensor = _Attention.apply(q_TQD, k_TGD, v_TGD, row, scale)
    return found


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_TQD: Tensor, k_TGD: Tensor, v_TGD: Tensor, row: Row, scale: float) -> Tensor:
        ctx.lengths, ctx.scale, ctx.shape = _padded(row), scale, q_TQD.shape
        ctx.places = _places(row, ctx.lengths)
        q, k, v = (_by_head(x, ctx.places, k_TGD.shape[1]) for x in (q_TQD, k_TGD, v_TGD))
        out, log_sums = torch.empty_like(q), torch.empty(q.shape[:2])
        with torch.autocast("cpu", enabled=False):
            for g, tokens, keys, first in _blocks(q, k, ctx.lengths):
                scores = q[g, tokens].float() @ k[g, keys].float().t()
                weights = q.new_empty(scores.shape)
                attend(array(scores), scale, first, *map(array, (weights, log_sums[g, tokens])))
                torch.mm(weights, v[g, keys], out=out[g, tokens])
        ctx.save_for_backward(q, k, v, out, log_sums)
        return _by_token(out, ctx.places, ctx.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v, out, log_sums = ctx.saved_tensors
        grad = _by_head(grads[0].to(q.dtype), ctx.places, len(k))
        q_grad = torch.empty_like(q)
        k_grad, v_grad = torch.zeros(k.shape), torch.zeros(v.shape)
        for g, tokens, keys, first in _blocks(q, k, ctx.lengths):
            scores = q[g, tokens].float() @ k[g, keys].float().t()
            slopes = grad[g, tokens] @ v[g, keys].t()
            weights = torch.empty_like(slopes)
            attend_back(
                array(scores),
                ctx.scale,
                first,
                *map(array, (log_sums[g, tokens], out[g, tokens], grad[g, tokens], slopes, weights)),
            )
            v_grad[g, keys] += weights.t() @ grad[g, tokens]
            torch.mm(slopes, k[g, keys], out=q_grad[g, tokens])
            k_grad[g, keys] += slopes.t() @ q[g, tokens]
        small = (len(grads[0]), *k.shape[::2])
        found = [_by_token(each, ctx.places, small).to(k.dtype) for each in (k_grad, v_grad)]
        return _by_token(q_grad, ctx.places, ctx.shape), found[0], found[1], None, None


def _padded(row: Row) -> list[int]:
    """Lengths of the sequences, filled up."""
    return [-(-length // PAD) * PAD for length in row.lengths]


def _places(row: Row, lengths: list[int]) -> Tensor:
    """Where each token of the row is when its sequence is filled up [T]."""
    starts = accumulate(lengths, initial=0)
    spans = zip(starts, row.lengths, strict=False)
    return torch.cat([torch.arange(start, start + length) for start, length in spans])


def _by_head(x_TQD: Tensor, places_T: Tensor, groups: int) -> Tensor:
    """[T, Q, D] -> [G, rows, D]: F for each token, zeros for what was filled up."""
    tokens, heads, width = x_TQD.shape
    parted = x_TQD.reshape(tokens, groups, heads // groups, width).transpose(0, 1)
    size = -(-(int(places_T[-1]) + 1) // PAD) * PAD
    out = x_TQD.new_zeros(groups, size, heads // groups, width).index_copy_(1, places_T, parted)
    return out.flatten(1, 2)


def _by_token(x: Tensor, places_T: Tensor, shape: tuple[int, ...]) -> Tensor:
    """What `_by_head` made -> [T, Q, D]."""
    each = shape[1] // len(x)
    parted: Tensor = x.unflatten(1, (-1, each))
    return parted.index_select(1, places_T).transpose(0, 1).reshape(shape)


def _blocks(q: Tensor, k: Tensor, lengths: list[int]) -> Iterator[tuple[int, slice, slice, int]]:
    """KV head, rows of queries, keys that the last of them sees, and how many come before the first token."""
    each = q.shape[1] // k.shape[1]
    for g in range(len(k)):
        for start, length in zip(accumulate(lengths, initial=0), lengths, strict=False):
            for first in range(0, length, BLOCK):
                begin, end = start + first, start + min(first + BLOCK, length)
                yield g, slice(begin * each, end * each), slice(start, end), first


@loops
def attend(scores_BM, scale, first, weights_BM, log_sums_B):  # type: ignore[no-untyped-def]
    """Softmax of each row over the keys that it sees; `log_sums` are of exp(scores)."""
    count, keys = scores_BM.shape
    each = count // (keys - first)
    factor = np.float32(scale)
    for b in range(count):
        seen = first + b // each + 1
        scores, weights = scores_BM[b], weights_BM[b]
        peak, total = scores[0], zero
        for m in range(seen):
            peak = max(peak, scores[m])
        for m in range(seen):
            scores[m] = exp(factor * (scores[m] - peak))
            total += scores[m]
        for m in range(seen):
            put(weights, m, scores[m] / total)
        for m in range(seen, keys):
            put(weights, m, zero)
        log_sums_B[b] = factor * peak + np.log(total)


@loops
def attend_back(scores_BM, scale, first, log_sums_B, out_BD, grad_BD, slopes_BM, weights_BM):  # type: ignore[no-untyped-def]
    """The weights again, and the gradients of the products of queries and keys from those of the weights,
    which are in `slopes`."""
    count, keys = scores_BM.shape
    each = count // (keys - first)
    factor = np.float32(scale)
    for b in range(count):
        seen = first + b // each + 1
        scores, weights, slopes = scores_BM[b], weights_BM[b], slopes_BM[b]
        along, log_sum = zero, log_sums_B[b]
        for d in range(out_BD.shape[1]):
            along += wide(out_BD[b, d]) * wide(grad_BD[b, d])
        for m in range(seen):
            weight = exp(factor * scores[m] - log_sum)
            put(weights, m, weight)
            put(slopes, m, factor * weight * (wide(slopes[m]) - along))
        for m in range(seen, keys):
            put(weights, m, zero)
            put(slopes, m, zero)
