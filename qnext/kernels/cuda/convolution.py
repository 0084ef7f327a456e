"""The short causal convolution over a whole row: a shifted copy a tap, empty where a document begins.

The kernel of flash-linear-attention takes its place where there is one (`fla_kernels`).
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from .. import reference
from ..documents import documents
from ..ops import Row
from .fla_kernels import library_for


def causal_conv(x_TC: Tensor, weight_CW: Tensor, row: Row, state_SWC: Tensor | None) -> Tensor:
    """See `Ops.causal_conv`."""
    if state_SWC is not None:
        return reference.causal_conv(x_TC, weight_CW, row, state_SWC)
    found = documents(row.lengths, x_TC.device)
    if library := library_for(x_TC):
        out, _ = library.convolution(x_TC[None], weight_CW, activation="silu", cu_seqlens=found.bounds)
        return out[0]
    places_T1 = found.places.unsqueeze(1)
    *earlier, newest = weight_CW.float().unbind(1)
    total = x_TC.float() * newest
    for back, weight in enumerate(reversed(earlier), 1):
        total = total + x_TC.roll(back, 0) * (weight * (places_T1 >= back))
    return F.silu(total).to(x_TC.dtype)
