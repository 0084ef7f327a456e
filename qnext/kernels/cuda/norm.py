"""RMS norms by the kernel that torch has for them; the weight is applied beside it, since the gradient of few
columns over many rows is slow inside."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def rms_norm(x_TH: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    """See `Ops.rms_norm`."""
    normed = F.rms_norm(x_TH.float(), x_TH.shape[-1:], eps=eps)
    return (normed * (1.0 + weight_H.float())).to(x_TH.dtype)


def gated_rms_norm(x_TVU: Tensor, gate_TVU: Tensor, weight_U: Tensor, eps: float) -> Tensor:
    """See `Ops.gated_rms_norm`."""
    normed = F.rms_norm(x_TVU.float(), x_TVU.shape[-1:], eps=eps)
    return (normed * weight_U.float() * F.silu(gate_TVU.float())).to(gate_TVU.dtype)
