"""The objectives of reinforcement against loops over answers and tokens, and against figures made by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from qnext.train.objective import advantages, divergence, grpo, gspo

LENGTHS = (3, 1, 5, 2)


def drawn(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """New and old log-probabilities [R], and advantages [N]."""
    generator = torch.Generator().manual_seed(seed)
    old = -torch.rand(sum(LENGTHS), generator=generator, dtype=torch.float64) * 3
    new = old + 0.4 * torch.randn(sum(LENGTHS), generator=generator, dtype=torch.float64)
    return new, old, torch.randn(len(LENGTHS), generator=generator, dtype=torch.float64)


def gained(ratio: float, advantage: float, low: float, high: float) -> float:
    """What a ratio earns, case by case."""
    if advantage >= 0:
        return min(ratio, 1 + high) * advantage
    return max(ratio, 1 - low) * advantage


def slow_gspo(
    new: Sequence[float], old: Sequence[float], gains: Sequence[float], low: float, high: float
) -> list[float]:
    found, start = [], 0
    for length, gain in zip(LENGTHS, gains, strict=True):
        product = 1.0
        for token in range(start, start + length):
            product *= math.exp(new[token]) / math.exp(old[token])
        found.append(gained(product ** (1 / length), gain, low, high))
        start += length
    return found


def slow_grpo(
    new: Sequence[float], old: Sequence[float], gains: Sequence[float], low: float, high: float
) -> list[float]:
    found, start = [], 0
    for length, gain in zip(LENGTHS, gains, strict=True):
        total = 0.0
        for token in range(start, start + length):
            total += gained(math.exp(new[token]) / math.exp(old[token]), gain, low, high)
        found.append(total / length)
        start += length
    return found


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("fast", "slow"), [(gspo, slow_gspo), (grpo, slow_grpo)])
def test_equal_to_the_twin(fast: object, slow: object, seed: int) -> None:
    new, old, gains = drawn(seed)
    found = fast(new, old, LENGTHS, gains, 0.1, 0.3)  # type: ignore[operator]
    wanted = slow(new.tolist(), old.tolist(), gains.tolist(), 0.1, 0.3)  # type: ignore[operator]
    assert found.gain.tolist() == pytest.approx(wanted)


@pytest.mark.parametrize("objective", [gspo, grpo])
def test_gradients_are_those_of_finite_differences(objective: object) -> None:
    new, old, gains = drawn()
    new.requires_grad_(True)

    def gain(new: Tensor) -> Tensor:
        found: Tensor = objective(new, old, LENGTHS, gains, 0.1, 0.3).gain  # type: ignore[operator]
        return found

    assert torch.autograd.gradcheck(gain, new)


def test_gspo_by_hand() -> None:
    """Two answers, of two tokens and of one. Ratios: sqrt(2 * 0.5) = 1 and 3; with an advantage above 0 the
    second earns 1.2 at most, and nothing is learned from it."""
    new = torch.tensor([math.log(0.4), math.log(0.2), math.log(0.6)], requires_grad=True)
    old = torch.tensor([math.log(0.2), math.log(0.4), math.log(0.2)])
    found = gspo(new, old, (2, 1), torch.tensor([2.0, 5.0]), 0.1, 0.2)
    assert found.gain.tolist() == pytest.approx([2.0, 6.0])
    assert found.ratio.tolist() == pytest.approx([1.0, 3.0]) and found.clipped.tolist() == [False, True]
    found.gain.sum().backward()
    assert new.grad is not None
    assert new.grad.tolist() == pytest.approx([1.0, 1.0, 0.0])  # ratio * advantage / length


def test_grpo_by_hand() -> None:
    """Ratios 2, 0.5 and 3. An advantage above 0 clips from above alone: min(2, 1.2) and 0.5; one below 0
    clips from below alone, so that 3 counts in full."""
    new = torch.tensor([math.log(0.4), math.log(0.2), math.log(0.6)], requires_grad=True)
    old = torch.tensor([math.log(0.2), math.log(0.4), math.log(0.2)])
    found = grpo(new, old, (2, 1), torch.tensor([2.0, -1.0]), 0.1, 0.2)
    assert found.gain.tolist() == pytest.approx([(1.2 * 2 + 0.5 * 2) / 2, -3.0])
    assert found.clipped.tolist() == [True, False, False]
    found.gain.sum().backward()
    assert new.grad is not None
    assert new.grad.tolist() == pytest.approx([0.0, 0.5 * 2 / 2, -3.0])


def test_on_the_weights_that_drew_both_are_the_policy_gradient() -> None:
    """Where nothing has changed, the gradient is advantage / length for each token, of either objective."""
    _, old, gains = drawn()
    for objective in (gspo, grpo):
        new = old.clone().requires_grad_(True)
        found = objective(new, old, LENGTHS, gains, 0.1, 0.3)
        assert torch.equal(found.ratio, torch.ones_like(found.ratio)) and not found.clipped.any()
        found.gain.sum().backward()
        assert new.grad is not None
        wanted = [g / n for g, n in zip(gains.tolist(), LENGTHS, strict=True) for _ in range(n)]
        assert new.grad.tolist() == pytest.approx(wanted)


def test_advantages_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.1, 0.1, 0.1, 0.1], [1.0, 0.0, 0.0, 0.0]])
    assert advantages(rewards, scaled=False).tolist() == [
        [0.5, -0.5, -0.5, 0.5],
        [0.0, 0.0, 0.0, 0.0],
        [0.75, -0.25, -0.25, -0.25],
    ]
    scaled = advantages(rewards, scaled=True)
    assert scaled[0].tolist() == pytest.approx([1.0, -1.0, -1.0, 1.0], rel=1e-5)
    assert scaled[1].tolist() == [0.0] * 4
    assert scaled[2].tolist() == pytest.approx(
        [x / math.sqrt(3 / 16) for x in (0.75, -0.25, -0.25, -0.25)], rel=1e-4
    )


def test_divergence_by_hand_and_its_gradient() -> None:
    """k3 is 0 for the same, and its gradient pulls back: 1 - start / new."""
    new = torch.tensor([math.log(0.5), math.log(0.25), math.log(0.3)], requires_grad=True)
    start = torch.tensor([math.log(0.25), math.log(0.5), math.log(0.3)])
    found = divergence(new, start, (2, 1))
    wanted = ((0.5 - math.log(0.5) - 1) + (2 - math.log(2) - 1)) / 2
    assert found.tolist() == pytest.approx([wanted, 0.0], abs=1e-7)
    found.sum().backward()
    assert new.grad is not None
    assert new.grad.tolist() == pytest.approx([(1 - 0.5) / 2, (1 - 2) / 2, 0.0], abs=1e-6)
