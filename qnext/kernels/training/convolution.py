"""The short causal convolution with SiLU and its gradient, a token at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import reference
from ..ops import Row
from .numbers import array, computes, copied, loops, one, put, rows, sigmoid, wide, zero


def causal_conv(x_TC: Tensor, weight_CW: Tensor, row: Row, state_SWC: Tensor | None) -> Tensor:
    """See `Ops.causal_conv`."""
    if state_SWC is not None or not computes(x_TC, weight_CW):
        return reference.causal_conv(x_TC, weight_CW, row, state_SWC)
    found: Tensor = _Convolution.apply(x_TC, weight_CW, row)
    return found


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, row: Row) -> Tensor:
        out = torch.empty(x.shape, dtype=x.dtype)
        ctx.edges = np.array([*row.starts, len(x)])
        convolve(*rows(x), _taps(weight), ctx.edges, array(out))
        ctx.save_for_backward(x, weight)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        x_grad = torch.empty(x.shape, dtype=x.dtype)
        taps = _taps(weight)
        taps_grad = torch.zeros(taps.shape, dtype=torch.float64)
        convolve_back(*rows(grads[0]), *rows(x), taps, ctx.edges, array(x_grad), array(taps_grad))
        return x_grad, taps_grad.t().to(weight.dtype), None


def _taps(weight_CW: Tensor) -> Any:
    """[W, C] fp32, the oldest token's first."""
    return copied(weight_CW.t())


@loops
def convolve(xs, pitch, taps_WC, edges, out_TC):  # type: ignore[no-untyped-def]
    """`edges`: where each sequence begins, and the end of the last."""
    channels = taps_WC.shape[1]
    total = np.empty(channels, np.float32)
    for n in range(len(edges) - 1):
        for t in range(edges[n], edges[n + 1]):
            add_taps(xs, pitch, taps_WC, edges[n], t, total)
            out = out_TC[t]
            for c in range(channels):
                put(out, c, total[c] * sigmoid(total[c]))


@loops
def add_taps(xs, pitch, taps_WC, start, t, total_C):  # type: ignore[no-untyped-def]
    """The convolution at token t of the sequence that begins at `start`."""
    width, channels = taps_WC.shape
    total_C[:] = zero
    for w in range(width):
        source = t - width + 1 + w
        if source >= start:
            x, tap = xs[source * pitch : source * pitch + channels], taps_WC[w]
            for c in range(channels):
                total_C[c] += wide(x[c]) * tap[c]


@loops
def convolve_back(  # type: ignore[no-untyped-def]
    grads, grad_pitch, xs, pitch, taps_WC, edges, x_grad_TC, taps_grad_WC
):
    width, channels = taps_WC.shape
    # gradients before the SiLU of the last W tokens, token t at t % W: an input's own is of those that saw it
    pulls_WC = np.zeros((width, channels), np.float32)
    total = np.empty(channels, np.float32)
    for n in range(len(edges) - 1):
        start, end = edges[n], edges[n + 1]
        for t in range(start, end + width - 1):
            pull = pulls_WC[t % width]
            if t < end:
                add_taps(xs, pitch, taps_WC, start, t, total)
                grad = grads[t * grad_pitch : t * grad_pitch + channels]
                for c in range(channels):
                    opened = sigmoid(total[c])
                    pull[c] = wide(grad[c]) * opened * (one + total[c] * (one - opened))
                for w in range(width):
                    source = t - width + 1 + w
                    if source >= start:
                        x, tap_grad = xs[source * pitch : source * pitch + channels], taps_grad_WC[w]
                        for c in range(channels):
                            tap_grad[c] += wide(x[c]) * pull[c]
            else:
                pull[:] = zero
            source = t - width + 1
            if source >= start:
                total[:] = zero
                for w in range(width):  # token source + w saw it through tap W - 1 - w
                    pull, tap = pulls_WC[(source + w) % width], taps_WC[width - 1 - w]
                    for c in range(channels):
                        total[c] += pull[c] * tap[c]
                x_grad = x_grad_TC[source]
                for c in range(channels):
                    put(x_grad, c, total[c])
