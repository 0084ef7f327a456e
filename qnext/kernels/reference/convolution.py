"""The short causal convolution in front of the delta rule."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops import Row


def causal_conv(x_TC: Tensor, weight_CW: Tensor, row: Row, state_SWC: Tensor | None) -> Tensor:
    """See `Ops.causal_conv`. Each sequence is preceded by its last W-1 inputs: zeros, or its slot of `state`,
    where the accepted drafts stand after the certain inputs.
    """
    width = weight_CW.shape[1]
    past = width - 1
    if state_SWC is None:
        before_NPC = x_TC.new_zeros(len(row.lengths), past, x_TC.shape[1])
    else:
        before_NPC = _window(state_SWC[row.slots], row.replays, past).to(x_TC.dtype)
    pieces: list[Tensor] = []
    for before, tokens in zip(before_NPC, x_TC.split(row.lengths), strict=True):
        pieces += (before, tokens)
    joined = torch.cat(pieces)
    if state_SWC is not None:
        begins = [s + past * (i + 1) for i, s in enumerate(row.starts)]
        ends = [s + n - d for s, n, d in zip(begins, row.lengths, row.drafts, strict=True)]
        places = torch.arange(-past, state_SWC.shape[1] - past)  # beyond the drafts: whatever is there
        kept = (torch.tensor(ends)[:, None] + places).clamp(max=len(joined) - 1).to(x_TC.device)
        state_SWC[row.slots] = joined[kept].to(state_SWC.dtype)
        for n, count, slot in row.saves:
            end = begins[n] + count
            state_SWC[slot, :past] = joined[end - past : end].to(state_SWC.dtype)
    span = joined.shape[0] - past
    total = torch.zeros((), dtype=torch.float32, device=x_TC.device)
    for tap, weight in enumerate(weight_CW.float().unbind(1)):
        total = total + joined[tap : tap + span].float() * weight
    # Of the outputs, those whose window straddles two sequences are dropped.
    wanted = [piece for i, piece in enumerate(total.split(_spans(row.lengths, past))) if i % 2 == 0]
    return F.silu(torch.cat(wanted)).to(x_TC.dtype)


def _window(rows_NDC: Tensor, replays: tuple[int, ...], past: int) -> Tensor:
    """The `past` inputs before each sequence's next token: later ones where drafts were accepted."""
    if not any(replays):
        return rows_NDC[:, :past]
    index = (torch.tensor(replays)[:, None] + torch.arange(past)).to(rows_NDC.device)
    return rows_NDC[torch.arange(len(replays), device=rows_NDC.device)[:, None], index]


def _spans(lengths: tuple[int, ...], past: int) -> list[int]:
    """Alternating runs of wanted outputs and of the `past` unwanted ones between two sequences."""
    spans = [span for length in lengths for span in (length, past)]
    return spans[:-1]
