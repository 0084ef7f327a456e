"""The ops that learn on CUDA, outputs and gradients, against the reference ops: here on whatever device there
is, since all but the delta rule's kernel are torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from qnext.kernels import cuda, reference
from qnext.kernels.documents import SHORTEST, documents
from qnext.model.packing import Packing

from .twins import distance

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LENGTHS = (1, 70, 2, 64, 130, 3, 200, 5, 128, 300)
T = sum(LENGTHS)
ROW = Packing.of(LENGTHS, device=DEVICE)
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
DTYPES = list(LIMITS)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def check(name: str, call: Callable[[Any, list[Tensor]], Tensor], inputs: list[Tensor]) -> None:
    """`call` with the op of either backend, the twin in float32, and its inputs."""
    limit = max(LIMITS[x.dtype] for x in inputs)
    results = []
    for ops, kind in ((cuda, None), (reference, torch.float32)):
        given = [x.to(kind or x.dtype).detach().requires_grad_() for x in inputs]
        out = call(getattr(ops, name), given)
        gradient = random(*out.shape, seed=9).to(out.dtype)
        results.append([out.detach(), *torch.autograd.grad(out, given, gradient)])
    for i, (mine, exact) in enumerate(zip(*results, strict=True)):
        assert distance(mine.float(), exact) < limit, i


def test_documents_lie_where_their_layout_says() -> None:
    found = documents(LENGTHS, DEVICE)
    starts = [sum(LENGTHS[:n]) for n in range(len(LENGTHS))]
    assert found.places.tolist() == [place for length in LENGTHS for place in range(length)]
    assert found.bounds.tolist() == [*starts, T]
    laid = torch.cat([rows.flatten() for rows in found.groups])
    assert laid[found.order].tolist() == list(range(T))
    assert [rows.shape[1] for rows in found.groups] == [SHORTEST, 2 * SHORTEST]
    for rows in found.groups:
        for document in rows.tolist():
            n = starts.index(document[0])
            places = [min(place, LENGTHS[n] - 1) for place in range(rows.shape[1])]
            assert document == [starts[n] + place for place in places]


@pytest.mark.parametrize("dtype", DTYPES)
def test_norms(dtype: torch.dtype) -> None:
    x, weight = random(9, 24).to(dtype) * 3, random(24, seed=1)
    check("rms_norm", lambda op, x: op(x[0], x[1], 1e-5), [x, weight])
    x, gate, weight = random(7, 4, 16), random(7, 4, 16, seed=1).to(dtype), random(16, seed=2)
    check("gated_rms_norm", lambda op, x: op(x[0], x[1], x[2], 1e-5), [x, gate, weight])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention(heads: int, dtype: torch.dtype) -> None:
    q, k, v = (random(T, n, 16, seed=i).to(dtype) for i, n in enumerate((4, heads, heads)))
    check("attention", lambda op, x: op(*x, ROW, None, 0.25), [q, k, v])


@pytest.mark.parametrize("dtype", DTYPES)
def test_convolution(dtype: torch.dtype) -> None:
    x, weight = random(T, 24).to(dtype), random(24, 4, seed=1)
    check("causal_conv", lambda op, x: op(*x, ROW, None), [x, weight])


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_delta_rule(dtype: torch.dtype) -> None:
    q, k, v = (random(T, n, 64, seed=i).to(dtype) for i, n in enumerate((2, 2, 4)))
    g, beta = -random(T, 4, seed=3).exp() / 8, random(T, 4, seed=4).sigmoid()
    check("gated_delta_rule", lambda op, x: op(*x, ROW, None), [q, k, v, g, beta])


@pytest.mark.parametrize("dtype", DTYPES)
def test_experts(dtype: torch.dtype) -> None:
    gate_up, down = random(6, 32, 64, seed=1) / 8, random(6, 64, 16, seed=2) / 4
    weights, chosen = random(T, 5, seed=3).softmax(-1).topk(2, -1)  # the last expert has no tokens
    inputs = [random(T, 64).to(dtype), weights, gate_up.to(dtype), down.to(dtype)]
    check("experts", lambda op, x: op(x[0], x[1], chosen, x[2], x[3]), inputs)
