"""The mixture of experts: rows sorted by expert, all experts' products in one launch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import reference
from ..rows import collect, spread


def experts(
    x_TH: Tensor, weights_Tk: Tensor, chosen_Tk: Tensor, gate_up_E2IH: Tensor, down_EHI: Tensor
) -> Tensor:
    """See `Ops.experts`. The products are in bfloat16, of the autocast or of the network, and take widths of
    whole lines of 16 bytes; cards before Hopper do not have them in every torch."""
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x_TH.dtype
    old = x_TH.is_cuda and torch.cuda.get_device_capability(x_TH.device) < (9, 0)
    if old or dtype != torch.bfloat16 or down_EHI.shape[1] % 8 or down_EHI.shape[2] % 8:
        return reference.experts(x_TH, weights_Tk, chosen_Tk, gate_up_E2IH, down_EHI)
    tokens, picks = chosen_Tk.shape
    sorted_R, order_R = chosen_Tk.flatten().sort(stable=True)
    numbers = torch.arange(len(order_R), device=x_TH.device)
    places_R = torch.empty_like(order_R).scatter_(0, order_R, numbers)
    ends_E = torch.searchsorted(
        sorted_R, torch.arange(len(gate_up_E2IH), device=x_TH.device), right=True
    ).int()
    rows_RH = spread(x_TH.to(dtype), order_R // picks, places_R.view(tokens, picks))
    gate, up = torch._grouped_mm(rows_RH, gate_up_E2IH.to(dtype).mT, offs=ends_E).chunk(2, -1)
    weights_R1 = collect(weights_Tk.flatten(), order_R).unsqueeze(1)
    hidden_RI = (F.silu(gate) * up * weights_R1).to(dtype)
    outs_RH = torch._grouped_mm(hidden_RI, down_EHI.to(dtype).mT, offs=ends_E)
    out_TkH = collect(outs_RH, places_R).view(tokens, picks, -1)
    return out_TkH.sum(1, dtype=torch.float32).to(x_TH.dtype)
