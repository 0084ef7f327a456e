"""Drawing a token of a whole vocabulary: the Gumbel-max trick, with logarithms only for tokens that may win.

Called by `engine/sampler`, where its twin is. Invariant: it finds the token that the twin finds, of the same
random numbers; only those that cannot win are left out.
"""

from __future__ import annotations

from math import exp, log

import numpy as np
import torch
from torch import Tensor

from .jit import inline, kernel

BLOCK = 256  # tokens that are looked at together
GOLDEN, FIRST, SECOND = (
    np.uint64(0x9E3779B97F4A7C15),
    np.uint64(0xBF58476D1CE4E5B9),
    np.uint64(0x94D049BB133111EB),
)
STEP, HALF = 2.0**-52, 2.0**-53
SLACK = 1 - 1e-4  # bounds are rounded to fp32
LOG2E = np.float32(1.4426950408889634)
ONE, LEAST = np.float32(1 << 23), np.float32(-126)  # of fp32: what an exponent counts for, and the least


def race(scores_RV: Tensor, heats_R: np.ndarray, bases_R: np.ndarray) -> np.ndarray:
    """The winner of each row [R] int64, from scores fp32, temperatures fp32, and where each row's random
    numbers begin (int64). Raises ValueError for other kinds."""
    count = scores_RV.shape[:1]
    if scores_RV.dtype != torch.float32 or heats_R.dtype != np.float32 or bases_R.dtype != np.int64:
        raise ValueError(f"kinds are {scores_RV.dtype}, {heats_R.dtype} and {bases_R.dtype}")
    if not heats_R.shape == bases_R.shape == count:
        raise ValueError(f"{len(scores_RV)} rows have {len(heats_R)} heats and {len(bases_R)} bases")
    scores = scores_RV.contiguous().numpy()
    winners: np.ndarray = scores.argmax(-1)
    _race(scores, heats_R, bases_R, winners)
    return winners


@inline
def _bits(base, token):  # type: ignore[no-untyped-def]
    """The 52 random bits of a token: splitmix64 (Steele et al. 2014)."""
    z = np.uint64(base) + np.uint64(token + 1) * GOLDEN
    z = (z ^ (z >> np.uint64(30))) * FIRST
    z = (z ^ (z >> np.uint64(27))) * SECOND
    return np.int64((z ^ (z >> np.uint64(31))) >> np.uint64(12))


@inline
def _height(score, bits):  # type: ignore[no-untyped-def]
    """What a token brings to the race: the highest wins."""
    return np.float64(score) - log(-log(np.float64(bits) * STEP + HALF))


@inline
def _at_most(score):  # type: ignore[no-untyped-def]
    """At least exp(score), and at most 1.07 times as much: an exponent with a straight line between powers of
    two."""
    power = max(score * LOG2E, LEAST)
    return np.int32((power + np.float32(127)) * ONE).view(np.float32)


@kernel()
def _race(scores, heats, bases, winners):  # type: ignore[no-untyped-def]
    """`winners` [R] are the likeliest tokens before.

    A token with the random number u gets the handicap -log(-log(u)), and -log(u) is at least 1 - u. So it
    cannot win where (1 - u) * exp(best so far) exceeds exp(its score).
    """
    for r in range(len(scores)):
        base, winner, heat = bases[r], winners[r], heats[r]
        peak, cool = scores[r, winner], np.float32(1) / heat
        best = _height(np.float32(0), _bits(base, winner))
        bar = exp(best) * SLACK
        for begin in range(0, scores.shape[1], BLOCK):
            end = min(begin + BLOCK, scores.shape[1])
            some = np.int64(0)
            for token in range(begin, end):
                rest = 1.0 - HALF - np.float64(_bits(base, token)) * STEP
                some |= np.int64(rest * bar <= np.float64(_at_most((scores[r, token] - peak) * cool)))
            if some:
                for token in range(begin, end):
                    score, bits = (scores[r, token] - peak) / heat, _bits(base, token)
                    if (1.0 - HALF - np.float64(bits) * STEP) * bar <= _at_most(score):
                        height = _height(score, bits)
                        if height > best or (height == best and token < winner):
                            best, winner = height, token
                            bar = exp(best) * SLACK
        winners[r] = winner
