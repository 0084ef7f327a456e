"""Causal grouped-query attention, one sequence at a time, over fresh keys and paged earlier ones."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops import Row


def attention(
    q_TQD: Tensor, k_TGD: Tensor, v_TGD: Tensor, row: Row, cache: tuple[Tensor, Tensor] | None, scale: float
) -> Tensor:
    """See `Ops.attention`. Earlier keys and values are gathered from their pages; nothing is padded."""
    if cache is not None:
        store(k_TGD, v_TGD, row, cache)
    parts = []
    for n, (start, length, context) in enumerate(zip(row.starts, row.lengths, row.contexts, strict=True)):
        q, k, v = (x[start : start + length] for x in (q_TQD, k_TGD, v_TGD))
        if cache is not None and context:
            k, v = (_gather(stored, row, n, context + length).to(q.dtype) for stored in cache)
        parts.append(_attend(q, k, v, len(k) - length, scale))
    return torch.cat(parts)


def store(k_TGD: Tensor, v_TGD: Tensor, row: Row, cache: tuple[Tensor, Tensor]) -> None:
    """See `Ops.store`."""
    assert row.cells is not None
    for stored, fresh in zip(cache, (k_TGD, v_TGD), strict=True):
        size = stored.shape[1]
        stored[row.cells // size, row.cells % size] = fresh.to(stored.dtype)


def _gather(stored_PBGD: Tensor, row: Row, n: int, count: int) -> Tensor:
    """The rows of sequence n up to `count`, without the empty first ones -> [count - first, G, D]."""
    assert row.pages is not None
    pages = row.pages[n, : -(-count // stored_PBGD.shape[1])]
    return stored_PBGD[pages].flatten(0, 1)[row.first : count]


def _attend(q_LQD: Tensor, k_MGD: Tensor, v_MGD: Tensor, context: int, scale: float) -> Tensor:
    """Query i sees keys up to `context + i` -> [L, Q, D]."""
    q, k, v = (x.transpose(0, 1)[None] for x in (q_LQD, k_MGD, v_MGD))
    length, grouped = q.shape[2], q.shape[1] != k.shape[1]
    mask = None
    if context and length > 1:
        mask = torch.ones(length, k.shape[2], dtype=torch.bool, device=q.device).tril(context)
    out = F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=not context and length > 1, scale=scale, enable_gqa=grouped
    )
    return out[0].transpose(0, 1)
