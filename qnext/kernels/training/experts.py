"""The mixture of experts and its gradient: rows sorted by expert, a few matrix products for each, and loops
for what lies between them.

Legend: T tokens, k experts of each, R = T k rows sorted by expert, H hidden, E experts, I their width. An
expert's rows are filled up with zeros to a multiple of PAD: oneDNN prepares itself for every new shape,
which takes as long as such a product.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .. import reference
from .numbers import array, computes, loops, matmul_dtype, one, put, sigmoid, wide, zero

PAD = 64


def swiglu(x_TH: Tensor, gate_up_2IH: Tensor, down_HI: Tensor) -> Tensor:
    """See `Ops.swiglu`."""
    if not computes(x_TH, gate_up_2IH, down_HI):
        return reference.swiglu(x_TH, gate_up_2IH, down_HI)
    return F.linear(_Gate.apply(F.linear(x_TH, gate_up_2IH)), down_HI)


def experts(
    x_TH: Tensor, weights_Tk: Tensor, chosen_Tk: Tensor, gate_up_E2IH: Tensor, down_EHI: Tensor
) -> Tensor:
    """See `Ops.experts`."""
    if not computes(x_TH, weights_Tk, gate_up_E2IH, down_EHI):
        return reference.experts(x_TH, weights_Tk, chosen_Tk, gate_up_E2IH, down_EHI)
    found: Tensor = _Experts.apply(x_TH, weights_Tk, chosen_Tk, gate_up_E2IH, down_EHI)
    return found


class _Gate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        gate_up = gate_up.contiguous()
        out = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
        gate(array(gate_up), array(out))
        ctx.save_for_backward(gate_up)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        gate_up_grad = torch.empty_like(gate_up)
        gate_back(array(grads[0].contiguous()), array(gate_up), array(gate_up_grad))
        return gate_up_grad


class _Experts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_TH: Tensor, weights_Tk: Tensor, chosen_Tk: Tensor, gate_up: Tensor, down: Tensor
    ) -> Tensor:
        dtype = matmul_dtype(x_TH)
        ctx.dtypes = x_TH.dtype, gate_up.dtype
        matrices = gate_up.to(dtype), down.to(dtype)
        counts = torch.bincount(chosen_Tk.flatten(), minlength=len(gate_up))
        ctx.blocks = (counts + PAD - 1).div(PAD, rounding_mode="floor").mul(PAD).tolist()
        places = torch.empty_like(chosen_Tk)
        find_places(array(chosen_Tk), np.cumsum([0, *ctx.blocks]), array(places))
        x_RH = _laid(x_TH, places, ctx.blocks, dtype)
        gates = _products(x_RH, matrices[0].mT, ctx.blocks)
        hidden = gates.new_empty(len(gates), down.shape[2])
        gate(array(gates), array(hidden))
        outs = _products(hidden, matrices[1].mT, ctx.blocks)
        out = torch.empty(x_TH.shape, dtype=x_TH.dtype)
        weights_Tk = weights_Tk.float().contiguous()
        gather(*(array(each) for each in (outs, places, weights_Tk, out)))
        ctx.save_for_backward(x_RH, weights_Tk, places, gates, *matrices)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, Tensor, Tensor]:
        x_RH, weights_Tk, places, gates, gate_up, down = ctx.saved_tensors
        x_dtype, dtype = ctx.dtypes
        grad_RH = _laid(grads[0], places, ctx.blocks, x_RH.dtype)
        weights_R = torch.zeros(len(x_RH)).index_copy_(0, places.flatten(), weights_Tk.flatten())
        pull = _products(grad_RH, down, ctx.blocks)
        gates_grad, weighted, weights_grad = (
            torch.empty_like(gates),
            torch.empty_like(pull),
            torch.empty(len(x_RH)),
        )
        weigh_back(*(array(each) for each in (pull, gates, weights_R, gates_grad, weighted, weights_grad)))
        down_grad = _outer(grad_RH, weighted, ctx.blocks)
        gate_up_grad = _outer(gates_grad, x_RH, ctx.blocks)
        rows_grad = _products(gates_grad, gate_up, ctx.blocks)
        x_grad = torch.empty(len(places), x_RH.shape[1], dtype=x_dtype)
        gather(*(array(each) for each in (rows_grad, places, torch.ones_like(weights_Tk), x_grad)))
        weights_grad = weights_grad.index_select(0, places.flatten()).view_as(places)
        return x_grad, weights_grad, None, gate_up_grad.to(dtype), down_grad.to(dtype)


def _laid(x_TH: Tensor, places_Tk: Tensor, blocks: list[int], dtype: torch.dtype) -> Tensor:
    """Each token's row at each of its places; zeros between them."""
    out = torch.zeros(sum(blocks), x_TH.shape[1], dtype=dtype)
    lay_rows(*(array(each) for each in (x_TH.contiguous(), places_Tk, out)))
    return out


def _products(rows: Tensor, matrices: Tensor, blocks: list[int]) -> Tensor:
    """Each expert's rows [.., M] by its matrix [M, N]."""
    outs = rows.new_empty(len(rows), matrices.shape[2])
    for row, matrix, out in zip(rows.split(blocks), matrices, outs.split(blocks), strict=True):
        torch.mm(row, matrix, out=out)
    return outs


def _outer(left: Tensor, right: Tensor, blocks: list[int]) -> Tensor:
    """Sums of outer products of each expert's rows [.., M] and [.., N] -> [E, M, N]."""
    outs = left.new_empty(len(blocks), left.shape[1], right.shape[1])
    for a, b, out in zip(left.split(blocks), right.split(blocks), outs, strict=True):
        torch.mm(a.t(), b, out=out)
    return outs


@loops
def find_places(chosen_Tk, starts, places_Tk):  # type: ignore[no-untyped-def]
    """Rows of an expert lie in the order of the tokens, from `starts` on."""
    free = starts.copy()
    tokens, picks = chosen_Tk.shape
    for t in range(tokens):
        for k in range(picks):
            places_Tk[t, k] = free[chosen_Tk[t, k]]
            free[chosen_Tk[t, k]] += 1


@loops
def lay_rows(x_TH, places_Tk, out_RH):  # type: ignore[no-untyped-def]
    tokens, picks = places_Tk.shape
    for t in range(tokens):
        x = x_TH[t]
        for k in range(picks):
            out = out_RH[places_Tk[t, k]]
            for h in range(len(out)):
                put(out, h, wide(x[h]))


@loops
def gate(gate_up_R2I, out_RI):  # type: ignore[no-untyped-def]
    width = out_RI.shape[1]
    for r in range(len(out_RI)):
        gates, ups, out = gate_up_R2I[r, :width], gate_up_R2I[r, width:], out_RI[r]
        for i in range(width):
            x = wide(gates[i])
            put(out, i, x * sigmoid(x) * wide(ups[i]))


@loops
def gate_back(grad_RI, gate_up_R2I, gate_up_grad_R2I):  # type: ignore[no-untyped-def]
    width = grad_RI.shape[1]
    for r in range(len(grad_RI)):
        grad, gates, ups = grad_RI[r], gate_up_R2I[r, :width], gate_up_R2I[r, width:]
        gates_grad, ups_grad = gate_up_grad_R2I[r, :width], gate_up_grad_R2I[r, width:]
        for i in range(width):
            x, pull = wide(gates[i]), wide(grad[i])
            opened = sigmoid(x)
            put(ups_grad, i, pull * x * opened)
            put(gates_grad, i, pull * wide(ups[i]) * opened * (one + x * (one - opened)))


@loops
def weigh_back(pull_RI, gate_up_R2I, weights_R, gate_up_grad_R2I, weighted_RI, weights_grad_R):  # type: ignore[no-untyped-def]
    """Of weight * hidden, hidden the gated row: gradients of both, and what it was. `pull` is the gradient
    before the weight."""
    width = pull_RI.shape[1]
    for r in range(len(pull_RI)):
        pulls, gates, ups = pull_RI[r], gate_up_R2I[r, :width], gate_up_R2I[r, width:]
        gates_grad, ups_grad, weighted = (
            gate_up_grad_R2I[r, :width],
            gate_up_grad_R2I[r, width:],
            weighted_RI[r],
        )
        weight, along = weights_R[r], zero
        for i in range(width):
            x, up, pull = wide(gates[i]), wide(ups[i]), wide(pulls[i])
            opened = sigmoid(x)
            hidden = x * opened * up
            along += hidden * pull
            put(weighted, i, weight * hidden)
            put(ups_grad, i, weight * pull * x * opened)
            put(gates_grad, i, weight * pull * up * opened * (one + x * (one - opened)))
        weights_grad_R[r] = along


@loops
def gather(rows_RH, places_Tk, weights_Tk, out_TH):  # type: ignore[no-untyped-def]
    """Each token's weighted sum of its rows."""
    tokens, picks = places_Tk.shape
    width = out_TH.shape[1]
    total = np.empty(width, np.float32)
    for t in range(tokens):
        total[:] = zero
        for k in range(picks):
            row, weight = rows_RH[places_Tk[t, k]], weights_Tk[t, k]
            for h in range(width):
                total[h] += weight * wide(row[h])
        out = out_TH[t]
        for h in range(width):
            put(out, h, total[h])
