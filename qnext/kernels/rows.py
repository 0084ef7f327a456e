"""Rows: copying them about with gradients that only read, where autograd's own would add atomically.

Used by the ops that learn on CUDA. Invariant: the gradient is autograd's, up to the order of sums; it is the
same in every run.

Legend: T rows of the source, R of the copy, k copies of each.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def spread(x_T: Tensor, sources_R: Tensor, places_Tk: Tensor) -> Tensor:
    """Row r of the result is row `sources[r]` of x. `places` says where each row of x went; what else there
    is in the result must have no gradient."""
    found: Tensor = _Spread.apply(x_T, sources_R, places_Tk)  # type: ignore[no-untyped-call]
    return found


def collect(x_R: Tensor, places_T: Tensor) -> Tensor:
    """Row t of the result is row `places[t]` of x; no two are the same."""
    found: Tensor = _Collect.apply(x_R, places_T)  # type: ignore[no-untyped-call]
    return found


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sources: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return x.index_select(0, sources)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (places,) = ctx.saved_tensors
        grad = grads[0].index_select(0, places.flatten())
        if places.shape[1] == 1:
            return grad, None, None
        return grad.unflatten(0, places.shape).sum(1, dtype=torch.float32).to(grad.dtype), None, None


class _Collect(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.rows = len(x)
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        grad = grads[0]
        return grad.new_zeros(ctx.rows, *grad.shape[1:]).index_copy_(0, places, grad), None
