"""What every layer is given, and the parts that several kinds of layers share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from qnext.kernels.ops import Ops

from .packing import Packing

Routing = list[tuple[Tensor, Tensor]]


class RoutingSink(Protocol):
    """Takes in each sparse layer's router probabilities [T, E] and choices [T, k], as a list does."""

    def append(self, routed: tuple[Tensor, Tensor], /) -> None: ...


@dataclass(frozen=True, eq=False)
class Step:
    """One forward's surroundings: how the row is packed, rotary tables [T, R], the backend, and what collects
    the routing where somebody wants it."""

    packing: Packing
    rotary: tuple[Tensor, Tensor]
    ops: Ops
    routing: RoutingSink | None = None


class RMSNorm(nn.Module):
    """Zero-centred RMS norm: the weight is the distance from 1 and starts at 0."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, x: Tensor, ops: Ops) -> Tensor:
        return ops.rms_norm(x, self.weight, self.eps)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), gate and up in one matrix."""

    def __init__(self, hidden: int, intermediate: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(hidden, 2 * intermediate, bias=False)
        self.down_proj = nn.Linear(intermediate, hidden, bias=False)

    def forward(self, x_TH: Tensor, step: Step) -> Tensor:
        return step.ops.swiglu(x_TH, self.gate_up_proj.weight, self.down_proj.weight)
