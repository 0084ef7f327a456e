"""The short causal convolution in front of the delta rule."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ops import Row


def causal_conv(x_TC: Tensor, weight_CW: Tensor, row: Row, state_SCW: Tensor | None) -> Tensor:
    """See `Ops.causal_conv`. Each sequence is preceded by its last W-1 inputs: zeros, or its slot of
    `state`.
    """
    width = weight_CW.shape[1]
    past = width - 1
    if state_SCW is None:
        before_NPC = x_TC.new_zeros(len(row.lengths), past, x_TC.shape[1])
    else:
        before_NPC = state_SCW[row.slots].transpose(1, 2).to(x_TC.dtype)
    pieces: list[Tensor] = []
    for before, tokens in zip(before_NPC, x_TC.split(row.lengths), strict=True):
        pieces += (before, tokens)
    joined = torch.cat(pieces)
    if state_SCW is not None:
        ends = torch.tensor(
            [s + n + past * (i + 1) for i, (s, n) in enumerate(zip(row.starts, row.lengths, strict=True))]
        )
        last = (ends[:, None] + torch.arange(-past, 0)).to(x_TC.device)
        state_SCW[row.slots] = joined[last].transpose(1, 2).to(state_SCW.dtype)
    span = joined.shape[0] - past
    total = torch.zeros((), dtype=torch.float32, device=x_TC.device)
    for tap, weight in enumerate(weight_CW.float().unbind(1)):
        total = total + joined[tap : tap + span].float() * weight
    # Of the outputs, those whose window straddles two sequences are dropped.
    kept = [piece for i, piece in enumerate(total.split(_spans(row.lengths, past))) if i % 2 == 0]
    return F.silu(torch.cat(kept)).to(x_TC.dtype)


def _spans(lengths: tuple[int, ...], past: int) -> list[int]:
    """Alternating runs of wanted outputs and of the `past` unwanted ones between two sequences."""
    spans = [span for length in lengths for span in (length, past)]
    return spans[:-1]
