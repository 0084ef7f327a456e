"""Routing and experts against a loop over tokens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qnext.kernels.reference import experts, route, swiglu

from . import twins
from .twins import distance

pytestmark = pytest.mark.usefixtures("poisoned_memory")

HIDDEN, WIDTH, COUNT = 10, 7, 5


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights() -> tuple[Tensor, Tensor]:
    return random(COUNT, 2 * WIDTH, HIDDEN, seed=1), random(COUNT, HIDDEN, WIDTH, seed=2)


@pytest.mark.parametrize("top_k", [1, 2, COUNT])
@pytest.mark.parametrize("normalise", [True, False])
def test_route(top_k: int, normalise: bool) -> None:
    logits = random(9, COUNT) * 3
    probs, shares, chosen = route(logits, top_k, normalise)
    assert shares.shape == chosen.shape == (9, top_k)
    for row in range(9):
        grown = [torch.tensor(x).exp().item() for x in logits[row].double().tolist()]
        wanted = [x / sum(grown) for x in grown]
        assert probs[row].tolist() == pytest.approx(wanted, rel=1e-5)
        best = sorted(range(COUNT), key=lambda e: -wanted[e])[:top_k]
        assert chosen[row].tolist() == best
        total = sum(wanted[e] for e in best) if normalise else 1.0
        assert shares[row].tolist() == pytest.approx([wanted[e] / total for e in best], rel=1e-5)


def test_route_is_single_precision_whatever_comes_in() -> None:
    logits = (random(4, COUNT) * 30).bfloat16()
    probs, shares, _ = route(logits, 2, True)
    assert probs.dtype == shares.dtype == torch.float32
    assert probs.equal(logits.float().softmax(-1))


@pytest.mark.parametrize("tokens,top_k", [(1, 1), (1, COUNT), (13, 2), (40, 3)])
def test_experts_equal_the_loop(tokens: int, top_k: int) -> None:
    x, (gate_up, down) = random(tokens, HIDDEN), weights()
    _, shares, chosen = route(random(tokens, COUNT, seed=4), top_k, True)
    wanted = twins.experts(x.double(), shares.double(), chosen, gate_up.double(), down.double())
    assert distance(experts(x, shares, chosen, gate_up, down), wanted) < 2e-6


def test_experts_that_nobody_chose_are_not_read() -> None:
    x, (gate_up, down) = random(6, HIDDEN), weights()
    chosen = torch.tensor([[4, 1]] * 6)
    shares = random(6, 2, seed=4).softmax(-1)
    wanted = twins.experts(x.double(), shares.double(), chosen, gate_up.double(), down.double())
    gate_up[[0, 2, 3]] = down[[0, 2, 3]] = float("nan")
    assert distance(experts(x, shares, chosen, gate_up, down), wanted) < 2e-6


def test_gradients_equal_those_of_the_loop() -> None:
    _, shares, chosen = route(random(12, COUNT, seed=4), 2, True)
    chosen[chosen == 3] = 2  # one expert without tokens
    fast = [x.requires_grad_() for x in (random(12, HIDDEN), shares, *weights())]
    slow = [x.detach().double().requires_grad_() for x in fast]
    scale = random(12, HIDDEN, seed=5)
    (experts(fast[0], fast[1], chosen, fast[2], fast[3]) * scale).sum().backward()
    (twins.experts(slow[0], slow[1], chosen, slow[2], slow[3]) * scale).sum().backward()
    for a, b in zip(fast, slow, strict=True):
        assert a.grad is not None and b.grad is not None
        assert distance(a.grad, b.grad) < 5e-6
    assert fast[2].grad is not None and fast[2].grad[3].count_nonzero() == 0


def test_swiglu_equals_its_formula() -> None:
    x, (gate_up, down) = random(8, HIDDEN), weights()
    wanted = torch.stack([twins.swiglu(row, gate_up[0].double(), down[0].double()) for row in x.double()])
    assert distance(swiglu(x, gate_up[0], down[0]), wanted) < 2e-6


def test_half_precision_comes_back_as_it_went_in() -> None:
    x, (gate_up, down) = random(8, HIDDEN).bfloat16(), (w.bfloat16() for w in weights())
    _, shares, chosen = route(random(8, COUNT, seed=4).bfloat16(), 2, True)
    found = experts(x, shares, chosen, gate_up, down)
    assert found.dtype == torch.bfloat16
    wanted = experts(x.float(), shares, chosen, gate_up.float(), down.float())
    assert distance(found, wanted) < 2e-2
