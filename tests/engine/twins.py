"""Twins of the sampler in plain Python, one row at a time, and a test of chance."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence as Ids

from qnext.engine.request import SamplingParams
from qnext.engine.sequence import Sequence


def penalised(scores: list[float], made: Sequence) -> list[float]:
    """Twin of `penalise` for one row."""
    wish, out = made.request.sampling, list(scores)
    for token in set(made.tokens):
        factor = wish.repetition_penalty
        out[token] = out[token] / factor if out[token] > 0 else out[token] * factor
    for token, times in Counter(made.tokens[len(made.request.prompt) :]).items():
        out[token] -= wish.presence_penalty + wish.frequency_penalty * times
    return out


def chances(scores: list[float], wish: SamplingParams) -> dict[int, float]:
    """Twin of `distribution` for one row: probability of each token that has one."""
    best = max(scores)
    grown = {
        i: math.exp((score - best) / wish.temperature)
        for i, score in enumerate(scores)
        if score > float("-inf")
    }
    order = sorted(grown, key=lambda i: (-grown[i], i))[: wish.top_k or None]
    total = sum(grown[i] for i in order)
    kept: dict[int, float] = {}
    before = 0.0
    for i in order:
        share = grown[i] / total
        if not kept or (
            (before < wish.top_p or wish.top_p == 1) and share >= wish.min_p * grown[order[0]] / total
        ):
            kept[i] = share
        before += share
    return {i: share / sum(kept.values()) for i, share in kept.items()}


def dice(seed: int, place: int, token: int) -> float:
    """The number in (0, 1) that a token has at a place of a text: splitmix64 in Python's whole numbers."""

    def mixed(z: int) -> int:
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    golden = 0x9E3779B97F4A7C15
    base = mixed((seed * 0xD1342543DE82EF95 + (place + 1) * golden) % 2**64)
    return ((mixed((base + (token + 1) * golden) % 2**64) >> 12) + 0.5) / 2**52


def race(shares: dict[int, float], seed: int, place: int) -> list[int]:
    """Twin of the draw for one row: the tokens, the winner first."""
    heights = {
        token: math.log(share) - math.log(-math.log(dice(seed, place, token)))
        for token, share in shares.items()
        if share > 0
    }
    return sorted(heights, key=lambda token: -heights[token])


def chi_square(counts: Ids[int], expected: Ids[float]) -> float:
    """Probability (Wilson and Hilferty's approximation) of deviating at least so much by chance."""
    statistic = sum((count - wanted) ** 2 / wanted for count, wanted in zip(counts, expected, strict=True))
    degrees = len(counts) - 1
    if degrees == 0:
        return 1.0
    spread = 2 / (9 * degrees)
    return 0.5 * math.erfc(((statistic / degrees) ** (1 / 3) - (1 - spread)) / math.sqrt(2 * spread))
