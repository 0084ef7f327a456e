"""RMS norms and their gradients, a row at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import reference
from .numbers import array, computes, copied, loops, matmul_dtype, one, put, rows, sigmoid, wide, zero


def rms_norm(x_TH: Tensor, weight_H: Tensor, eps: float) -> Tensor:
    """See `Ops.rms_norm`. Where matrix products are bf16, so is the result: they are what reads it."""
    if not computes(x_TH, weight_H):
        return reference.rms_norm(x_TH, weight_H, eps)
    found: Tensor = _Norm.apply(x_TH, weight_H, eps)
    return found


def gated_rms_norm(x_TVU: Tensor, gate_TVU: Tensor, weight_U: Tensor, eps: float) -> Tensor:
    """See `Ops.gated_rms_norm`."""
    if not computes(x_TVU, gate_TVU, weight_U):
        return reference.gated_rms_norm(x_TVU, gate_TVU, weight_U, eps)
    found: Tensor = _GatedNorm.apply(x_TVU, gate_TVU, weight_U, eps)
    return found


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        width = x.shape[-1]
        scales = torch.empty(x.numel() // width)
        out = torch.empty_like(x, dtype=matmul_dtype(x))
        normalise(array(x.view(-1, width)), copied(weight), eps, array(out.view(-1, width)), array(scales))
        ctx.save_for_backward(x, weight, scales)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, scales = ctx.saved_tensors
        width = x.shape[-1]
        grad = grads[0].contiguous()
        x_grad, weight_grad = torch.empty_like(x), torch.zeros(width, dtype=torch.float64)
        normalise_back(
            *(array(each.view(-1, width)) for each in (grad, x)),
            copied(weight),
            *(array(each) for each in (scales, x_grad.view(-1, width), weight_grad)),
        )
        return x_grad, weight_grad.to(weight.dtype), None


@loops
def normalise(x_TH, weight_H, eps, out_TH, scales_T):  # type: ignore[no-untyped-def]
    width = x_TH.shape[1]
    for t in range(len(x_TH)):
        x, out = x_TH[t], out_TH[t]
        total = zero
        for h in range(width):
            total += wide(x[h]) * wide(x[h])
        scale = one / np.sqrt(total / np.float32(width) + np.float32(eps))
        scales_T[t] = scale
        for h in range(width):
            put(out, h, wide(x[h]) * scale * (one + weight_H[h]))


@loops
def normalise_back(grad_TH, x_TH, weight_H, scales_T, x_grad_TH, weight_grad_H):  # type: ignore[no-untyped-def]
    width = x_TH.shape[1]
    for t in range(len(x_TH)):
        grad, x, out, scale = grad_TH[t], x_TH[t], x_grad_TH[t], scales_T[t]
        along = zero
        for h in range(width):
            along += wide(grad[h]) * (one + weight_H[h]) * wide(x[h])
        along = along * scale * scale * scale / np.float32(width)
        for h in range(width):
            put(out, h, wide(grad[h]) * (one + weight_H[h]) * scale - wide(x[h]) * along)
            weight_grad_H[h] += wide(grad[h]) * wide(x[h]) * scale


class _GatedNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
        x = x.contiguous()
        out = torch.empty(x.shape, dtype=gate.dtype)
        normalise_gated(array(x), *rows(gate), copied(weight), eps, array(out))
        ctx.save_for_backward(x, gate, weight)
        ctx.eps = eps
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, gate, weight = ctx.saved_tensors
        grad = grads[0].contiguous()
        x_grad, weight_grad = torch.empty_like(x), torch.zeros(weight.shape, dtype=torch.float64)
        gate_grad = torch.empty(gate.shape, dtype=gate.dtype)
        normalise_gated_back(
            array(grad),
            array(x),
            *rows(gate),
            copied(weight),
            ctx.eps,
            *(array(each) for each in (x_grad, gate_grad, weight_grad)),
        )
        return x_grad, gate_grad, weight_grad.to(weight.dtype), None


@loops
def normalise_gated(x_TVU, gates, pitch, weight_U, eps, out_TVU):  # type: ignore[no-untyped-def]
    tokens, heads, width = x_TVU.shape
    for t in range(tokens):
        for v in range(heads):
            x, out = x_TVU[t, v], out_TVU[t, v]
            gate = gates[t * pitch + v * width : t * pitch + (v + 1) * width]
            total = zero
            for u in range(width):
                total += wide(x[u]) * wide(x[u])
            scale = one / np.sqrt(total / np.float32(width) + np.float32(eps))
            for u in range(width):
                g = wide(gate[u])
                put(out, u, wide(x[u]) * scale * weight_U[u] * g * sigmoid(g))


@loops
def normalise_gated_back(  # type: ignore[no-untyped-def]
    grad_TVU, x_TVU, gates, pitch, weight_U, eps, x_grad_TVU, gate_grad_TVU, weight_grad_U
):
    tokens, heads, width = x_TVU.shape
    pull = np.empty(width, np.float32)  # the gradient of x / rms(x), without the weight
    for t in range(tokens):
        for v in range(heads):
            x, grad, x_grad, gate_grad = x_TVU[t, v], grad_TVU[t, v], x_grad_TVU[t, v], gate_grad_TVU[t, v]
            gate = gates[t * pitch + v * width : t * pitch + (v + 1) * width]
            total = zero
            for u in range(width):
                total += wide(x[u]) * wide(x[u])
            scale = one / np.sqrt(total / np.float32(width) + np.float32(eps))
            along = zero
            for u in range(width):
                g = wide(gate[u])
                opened = sigmoid(g)
                pull[u] = wide(grad[u]) * g * opened
                slope = opened * (one + g * (one - opened))
                put(gate_grad, u, wide(grad[u]) * wide(x[u]) * scale * weight_U[u] * slope)
                along += pull[u] * weight_U[u] * wide(x[u])
            along = along * scale * scale * scale / np.float32(width)
            for u in range(width):
                put(x_grad, u, pull[u] * weight_U[u] * scale - wide(x[u]) * along)
                weight_grad_U[u] += pull[u] * wide(x[u]) * scale
