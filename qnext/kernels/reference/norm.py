"""RMS norms: the zero-centred one of the residual stream and the gated one of the delta rule's output."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def rms_norm(x_TH: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    """x / rms(x) * (1 + weight) over the last dimension, in fp32, rounded once to x's dtype."""
    x = x_TH.float()
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return (x * (1.0 + weight_H.float())).to(x_TH.dtype)


def gated_rms_norm(x_TVU: Tensor, gate_TVU: Tensor, weight_U: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight * silu(gate) over the last dimension, in fp32, rounded once to the gate's dtype."""
    x = x_TVU.float()
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)
    return (x * weight_U.float() * F.silu(gate_TVU.float())).to(gate_TVU.dtype)
