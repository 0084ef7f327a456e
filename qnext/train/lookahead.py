"""Looking several tokens ahead in training: the MTP head used on itself, as drafting uses it.

The loss asks for its hidden states depth by depth. Invariant: what the head computes at depth d for a token
is what it computes when it drafts the d-th token after it, given that the drafts before were right: it reads
its own last hidden state, and attends to the trunk's tokens up to the first draft and to its own after.

Legend: T tokens of the row, D documents, L of one, H hidden, Q/G query and KV heads, C their width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qnext.kernels.ops import Ops, Row
from qnext.kernels.select import backend
from qnext.model.layers import RoutingSink
from qnext.model.packing import Packing
from qnext.model.qwen3_next import Qwen3Next

from .batch import Batch


def look_ahead(
    model: Qwen3Next, hidden: Tensor, batch: Batch, packing: Packing, routing: RoutingSink, depth: int
) -> Iterator[Tensor]:
    """For d of 1..depth, the head's hidden states [T, H]; row t of depth d is about token t + 2.

    `hidden` [T, H] is the trunk's. At depth d the first d - 1 rows of each document mean nothing.
    """
    device = batch.ids.device
    ends = torch.tensor(batch.lengths, device=device).cumsum(0)
    next_ids = batch.ids.roll(-1)
    # a document's last token has no next one: itself, seen by no learned row, not a neighbour's first
    next_ids[ends - 1] = batch.ids[ends - 1]
    places = places_inside(torch.arange(len(batch.ids), device=device), batch.lengths)
    past = _Past(backend(device.type))
    for d in range(1, depth + 1):
        hidden = model.mtp_hidden(hidden, next_ids, packing, routing=routing, own=d > 1, ops=past.at(d))
        yield hidden
        # a row's next input is what the head gave one row before; at a beginning that is a neighbour's
        hidden = hidden.roll(1, 0) * (places >= d).unsqueeze(1)


def places_inside(positions: Tensor, lengths: Sequence[int]) -> Tensor:
    """How many tokens of their own document stand before these `positions` of the row."""
    sizes = torch.tensor(lengths, device=positions.device)
    ends = sizes.cumsum(0)
    document = torch.searchsorted(ends, positions, right=True)
    return positions - (ends - sizes)[document]


class _Past:
    """The head's keys and values of each depth so far, for the depths after it."""

    def __init__(self, ops: Ops) -> None:
        self.ops = ops
        self.kept: dict[int, tuple[Tensor, Tensor]] = {}

    def at(self, depth: int) -> Ops:
        """The backend's ops, with the attention of a depth. The first is the head as it always is."""
        found: Any = _Depth(self, depth)
        return found  # type: ignore[no-any-return]


class _Depth:
    def __init__(self, past: _Past, depth: int) -> None:
        self._past, self._depth = past, depth

    def __getattr__(self, name: str) -> Any:
        return getattr(self._past.ops, name)

    def attention(
        self,
        q_TQC: Tensor,
        k_TGC: Tensor,
        v_TGC: Tensor,
        row: Row,
        cache: tuple[Tensor, Tensor] | None,
        scale: float,
    ) -> Tensor:
        """See `Ops.attention`."""
        kept, depth = self._past.kept, self._depth
        kept[depth] = k_TGC, v_TGC
        if depth == 1:
            return self._past.ops.attention(q_TQC, k_TGC, v_TGC, row, cache, scale)
        out = []
        for start, length in zip(row.starts, row.lengths, strict=True):
            part = slice(start, start + length)
            k, v = (torch.cat([kept[d][i][part] for d in range(1, depth + 1)]) for i in range(2))
            q, k, v = (x.transpose(0, 1)[None] for x in (q_TQC[part], k, v))
            mask = visible(length, depth, q.device)
            found = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
            out.append(found[0].transpose(0, 1))
        return torch.cat(out)


def visible(length: int, depth: int, device: torch.device) -> Tensor:
    """Which keys, those of depth 1 first, the queries of a depth see [L, depth * L]: row j, the draft number
    `depth - 1` after row i = j - depth + 1, sees rows up to i of depth 1 and row i + d - 1 of depth d."""
    ones = torch.ones(length, length, dtype=torch.bool, device=device)
    chain = [ones.tril(d - depth) & ones.triu(d - depth) for d in range(2, depth + 1)]
    return torch.cat([ones.tril(1 - depth), *chain], 1)
