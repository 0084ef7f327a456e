"""Both RMS norms against their formulas in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qnext.kernels.reference import gated_rms_norm, rms_norm

from .twins import distance

SHAPES = [(1, 8), (5, 7), (3, 2, 16)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def normed(x: Tensor, eps: float) -> Tensor:
    return x / (x.square().sum(-1, keepdim=True) / x.shape[-1] + eps).sqrt()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("eps", [1e-6, 0.1])
def test_rms_norm_is_zero_centred(shape: tuple[int, ...], eps: float) -> None:
    x, weight = random(*shape) * 0.3, random(shape[-1], seed=1)
    assert distance(rms_norm(x, weight, eps), normed(x.double(), eps) * (weight.double() + 1)) < 1e-6
    assert distance(rms_norm(x, torch.zeros(shape[-1]), eps), normed(x.double(), eps)) < 1e-6


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("eps", [1e-6, 0.1])
def test_gated_rms_norm_is_plain(shape: tuple[int, ...], eps: float) -> None:
    x, gate, weight = random(*shape) * 0.3, random(*shape, seed=1), random(shape[-1], seed=2)
    g = gate.double()
    wanted = normed(x.double(), eps) * weight.double() * g / (1 + (-g).exp())
    assert distance(gated_rms_norm(x, gate, weight, eps), wanted) < 1e-6


def test_half_precision_is_rounded_once() -> None:
    x, gate, weight = random(9, 33), random(9, 33, seed=1).bfloat16(), random(33, seed=2).bfloat16()
    half = x.bfloat16()
    found = rms_norm(half, weight, 1e-6)
    assert found.equal(rms_norm(half.float(), weight.float(), 1e-6).bfloat16())
    gated = gated_rms_norm(x, gate, weight, 1e-6)  # the delta rule's output is fp32, the gate is not
    assert gated.dtype == torch.bfloat16
    assert gated.equal(gated_rms_norm(x, gate.float(), weight.float(), 1e-6).bfloat16())


def test_large_values_do_not_overflow_half_precision() -> None:
    x = torch.full((1, 16), 60000.0, dtype=torch.float16)
    assert rms_norm(x, torch.zeros(16, dtype=torch.float16), 1e-6).equal(torch.ones(1, 16).half())


def test_gradients_equal_those_of_the_formula() -> None:
    fast = [
        random(4, 6).requires_grad_(),
        random(4, 6, seed=1).requires_grad_(),
        random(6, seed=2).requires_grad_(),
    ]
    x, g, w = (t.detach().double().requires_grad_() for t in fast)
    scale = random(4, 6, seed=3)
    a, b, c = fast
    ((gated_rms_norm(a, b, c, 1e-5) + rms_norm(a, c, 1e-5)) * scale).sum().backward()
    wanted = normed(x, 1e-5) * w * g / (1 + (-g).exp()) + normed(x, 1e-5) * (1 + w)
    (wanted * scale).sum().backward()
    for found, slow in zip(fast, (x, g, w), strict=True):
        assert found.grad is not None and slow.grad is not None
        assert distance(found.grad, slow.grad) < 2e-6
