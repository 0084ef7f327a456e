"""The mixture of experts: routing, the chosen experts, and the plain SwiGLU that shared experts use."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def route(logits_TE: Tensor, top_k: int, normalise: bool) -> tuple[Tensor, Tensor, Tensor]:
    """See `Ops.route`. Weights are the top probabilities, made to sum to 1 where `normalise`."""
    probs = torch.softmax(logits_TE, -1, dtype=torch.float32)
    weights, chosen = probs.topk(top_k, -1)
    if normalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return probs, weights, chosen


def swiglu(x_TH: Tensor, gate_up_2IH: Tensor, down_HI: Tensor) -> Tensor:
    """See `Ops.swiglu`. The first half of `gate_up` is the gate."""
    gate, up = F.linear(x_TH, gate_up_2IH).chunk(2, -1)
    return F.linear(F.silu(gate) * up, down_HI)


def experts(
    x_TH: Tensor, weights_Tk: Tensor, chosen_Tk: Tensor, gate_up_E2IH: Tensor, down_EHI: Tensor
) -> Tensor:
    """See `Ops.experts`. Tokens are sorted by expert, so that each expert multiplies one block."""
    tokens, picks = chosen_Tk.shape
    order = chosen_Tk.flatten().argsort(stable=True)
    counts = torch.bincount(chosen_Tk.flatten(), minlength=gate_up_E2IH.shape[0]).tolist()
    blocks = x_TH.index_select(0, order // picks).split(counts)
    # unbind, not indexing: its backward makes one gradient for all experts instead of one full-size each
    triples = zip(blocks, gate_up_E2IH.unbind(), down_EHI.unbind(), strict=True)
    outs = torch.cat([swiglu(block, gate_up, down) for block, gate_up, down in triples if len(block)])
    restored = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    out_TkH = outs.index_select(0, restored).view(tokens, picks, -1)
    return (out_TkH.float() * weights_Tk.unsqueeze(-1)).sum(1).to(x_TH.dtype)
