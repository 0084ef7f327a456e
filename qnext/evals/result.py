"""Result: what one gate measured, with its uncertainty, beside what it asks for.

Made by `gates`, shown by `report`. Invariant: a result says how many cases it rests on, and the seed that
makes the same cases again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z95 = 1.959964  # standard deviations that hold 95 % of a normal distribution


@dataclass(frozen=True)
class Result:
    """`value` is a rate in [0, 1], to be at least `limit`, or, where `is_loss`, nats per token, to be at most
    `limit`; `low` to `high` is its 95 % confidence interval."""

    gate: str
    value: float
    low: float
    high: float
    count: int
    limit: float
    seed: int
    detail: str = ""
    is_loss: bool = False

    @property
    def passed(self) -> bool:
        """Whether the value itself, not the interval's end, reaches the limit; nothing counted is missed."""
        if not self.count:
            return False
        return self.value <= self.limit if self.is_loss else self.value >= self.limit


def rate(gate: str, right: int, count: int, limit: float, seed: int, detail: str = "") -> Result:
    """The result of counting: `right` of `count` cases."""
    low, high = wilson(right, count)
    return Result(gate, right / max(count, 1), low, high, count, limit, seed, detail)


def loss(gate: str, scores: Sequence[tuple[float, int]], limit: float, seed: int, detail: str = "") -> Result:
    """The result of scoring texts: (nats, tokens) of each. The interval takes texts, not tokens, as what was
    drawn: the standard error of a ratio of sums."""
    nats, tokens = sum(nats for nats, _ in scores), sum(count for _, count in scores)
    n, mean = len(scores), nats / max(tokens, 1)
    if n < 2:
        return Result(gate, mean, -math.inf, math.inf, n, limit, seed, detail, is_loss=True)
    squares = sum((each - mean * count) ** 2 for each, count in scores)
    half = Z95 * math.sqrt(n / (n - 1) * squares) / tokens
    return Result(gate, mean, mean - half, mean + half, n, limit, seed, detail, is_loss=True)


def wilson(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a rate: unlike the usual one it holds for few cases, and at 0 and 1."""
    if not count:
        return 0.0, 1.0
    share, z2 = right / count, Z95**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)
