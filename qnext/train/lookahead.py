"""Looking several tokens ahead in training: the MTP head used on itself, as drafting uses it.

The loss asks for its hidden states depth by depth. Invariant: what the head computes at depth d for a token
is what it computes when it drafts the d-th token after it, given that the drafts before were right: it reads
its own last hidden state, and attends to the trunk's tokens up to the first draft and to its own after.

Legend: T tokens of the row, D documents, L of one, H hidden, Q/G query and KV heads, C their width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qnext.kernels.documents import by_group, documents
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
    found = documents(batch.lengths, batch.ids.device)
    places, last = found.places, found.bounds[1:] - 1
    next_ids = batch.ids.roll(-1)
    # a document's last token has no next one: itself, seen by no learned row, not a neighbour's first
    next_ids[last] = batch.ids[last]
    past = _Past(backend(batch.ids.device.type))
    for d in range(1, depth + 1):
        hidden = model.mtp_hidden(hidden, next_ids, packing, routing=routing, own=d > 1, ops=past.at(d))
        yield hidden
        # a row's next input is what the head gave one row before; at a beginning that is a neighbour's
        hidden = hidden.roll(1, 0) * (places >= d).unsqueeze(1)


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
        past = [kept[d][i] for i in range(2) for d in range(1, depth + 1)]

        def attend(q: Tensor, *past: Tensor) -> Tensor:
            k, v = (torch.cat(each, 1).transpose(1, 2) for each in (past[:depth], past[depth:]))
            mask = visible(q.shape[1], depth, q.device)
            found = F.scaled_dot_product_attention(
                q.transpose(1, 2), k, v, attn_mask=mask, scale=scale, enable_gqa=True
            )
            return found.transpose(1, 2)

        return by_group((q_TQC, *past), documents(row.lengths, q_TQC.device), attend)


def visible(length: int, depth: int, device: torch.device) -> Tensor:
    """Which keys, those of depth 1 first, the queries of a depth see [L, depth * L]: row j, the draft number
    `depth - 1` after row i = j - depth + 1, sees rows up to i of depth 1 and row i + d - 1 of depth d."""
    ones = torch.ones(length, length, dtype=torch.bool, device=device)
    chain = [ones.tril(d - depth) & ones.triu(d - depth) for d in range(2, depth + 1)]
    return torch.cat([ones.tril(1 - depth), *chain], 1)
