"""The objectives of reinforcement: from rewards and log-probabilities to what is maximised.

Called by `reinforcement`. Invariant: pure functions of tensors; gradients reach the new log-probabilities
alone.

Legend: N answers, R tokens of all answers, end to end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_EPS = 1e-6


class Surrogate(NamedTuple):
    """What each answer adds to the objective [N]; the ratios that it rests on, by answer [N] or by token [R],
    and which of them were clipped, so that nothing is learned from them."""

    gain: Tensor
    ratio: Tensor
    clipped: Tensor


def advantages(rewards_PG: Tensor, *, scaled: bool) -> Tensor:
    """How much better each of G answers is than its group's mean, over the group's (uncorrected) standard
    deviation where `scaled` [P, G]. A group whose answers all earn the same has 0 everywhere."""
    centred = rewards_PG - rewards_PG.mean(1, keepdim=True)
    if not scaled:
        return centred
    return centred / (centred.square().mean(1, keepdim=True).sqrt() + _EPS)


def gspo(
    new_R: Tensor, old_R: Tensor, lengths: Sequence[int], advantages_N: Tensor, low: float, high: float
) -> Surrogate:
    """Group sequence policy optimisation (Zheng et al. 2025): an answer's ratio is the geometric mean of its
    tokens' likelihood ratios."""
    ratio = mean_by_answer(new_R - old_R, lengths).exp()
    gain, clipped = _clip(ratio, advantages_N, low, high)
    return Surrogate(gain, ratio.detach(), clipped)


def grpo(
    new_R: Tensor, old_R: Tensor, lengths: Sequence[int], advantages_N: Tensor, low: float, high: float
) -> Surrogate:
    """Group relative policy optimisation (Shao et al. 2024): each token has a ratio, an answer's gain is the
    mean of its tokens'."""
    ratio = (new_R - old_R).exp()
    gain, clipped = _clip(ratio, advantages_N[owners(lengths, new_R.device)], low, high)
    return Surrogate(mean_by_answer(gain, lengths), ratio.detach(), clipped)


def divergence(new_R: Tensor, start_R: Tensor, lengths: Sequence[int]) -> Tensor:
    """Each answer's mean distance from the starting weights [N] in nats a token: an unbiased estimate of the
    KL divergence that is never negative (Schulman's k3)."""
    back = start_R - new_R
    return mean_by_answer(back.exp() - back - 1, lengths)


def mean_by_answer(values_R: Tensor, lengths: Sequence[int]) -> Tensor:
    """The mean over each answer's tokens [N]."""
    sizes = torch.tensor(lengths, device=values_R.device, dtype=values_R.dtype)
    sums = values_R.new_zeros(len(lengths)).index_add(0, owners(lengths, values_R.device), values_R)
    return sums / sizes


def owners(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Which answer each token belongs to [R]."""
    sizes = torch.tensor(lengths, device=device)
    return torch.arange(len(lengths), device=device).repeat_interleave(sizes)


def _clip(ratio: Tensor, advantage: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """PPO's pessimistic gain, and where it no longer depends on the ratio."""
    plain, bounded = ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage
    return torch.minimum(plain, bounded), (bounded < plain).detach()
