"""Drawing tokens from rows of scores in one call, with logarithms only for tokens that may win.

Called by `engine/sampler`; its twin is `reference/drawing`, which says what a draw and a wish are. Invariant:
it finds the token that the twin finds, of the same random numbers, but for sums that round otherwise.
"""

from __future__ import annotations

from math import exp, log

import numpy as np
import torch
from torch import Tensor

from . import simd
from .jit import inline, kernel
from .totals import weights

FEW, BLOCK = 64, 256  # tokens that are looked at together
LIKELY, WIDER = 64, 16  # so many nearly always hold all that top_p wants; if not, so many times as many
GOLDEN, FIRST, SECOND = (
    np.uint64(0x9E3779B97F4A7C15),
    np.uint64(0xBF58476D1CE4E5B9),
    np.uint64(0x94D049BB133111EB),
)
STEP, HALF = 2.0**-52, 2.0**-53
SLACK = 1 - 1e-4  # bounds are rounded to fp32
LOG2E = np.float32(1.4426950408889634)
ONE, LEAST = np.float32(1 << 23), np.float32(-126)  # of fp32: what an exponent counts for, and the least
SIGNLESS, LOW = np.int64(0x7FFFFFFF), np.int64(0xFFFFFFFF)


def draw(scores_RV: Tensor, wishes_R4: np.ndarray, bases_R: np.ndarray) -> np.ndarray:
    """One token a row [R] int64, from scores fp32, a table of wishes fp32, and where each row's random
    numbers begin (int64). Raises ValueError for other kinds."""
    rows, size = scores_RV.shape
    if scores_RV.dtype != torch.float32 or wishes_R4.dtype != np.float32 or bases_R.dtype != np.int64:
        raise ValueError(f"kinds are {scores_RV.dtype}, {wishes_R4.dtype} and {bases_R.dtype}")
    if wishes_R4.shape != (rows, 4) or bases_R.shape != (rows,):
        raise ValueError(f"{rows} rows have wishes {[*wishes_R4.shape]} and {len(bases_R)} bases")
    scores, winners, totals = scores_RV.contiguous(), np.empty(rows, np.int64), np.zeros(rows, np.float32)
    # top_p looks at shares of all, where top_k keeps all
    shared = (wishes_R4[:, 1] >= size) & (wishes_R4[:, 2] < 1) & (wishes_R4[:, 0] > 0)
    if shared.any():
        some = scores if shared.all() else scores[torch.from_numpy(shared)]
        totals[shared] = weights(some, wishes_R4[shared, 0])
    _draw(scores.numpy(), wishes_R4, totals, bases_R, winners)
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


@inline
def _among_all(scores, heat, base, winner):  # type: ignore[no-untyped-def]
    """The winner of a row [V] from which nothing is cut; `winner`: the likeliest.

    A token with the random number u gets the handicap -log(-log(u)), and -log(u) is at least 1 - u. So it
    cannot win where (1 - u) * exp(best so far) exceeds exp(its score).
    """
    peak, cool = scores[winner], np.float32(1) / heat
    best = _height(np.float32(0), _bits(base, winner))
    bar = exp(best) * SLACK
    for begin in range(0, len(scores), BLOCK):
        end = min(begin + BLOCK, len(scores))
        some = np.int64(0)
        for token in range(begin, end):
            rest = 1.0 - HALF - np.float64(_bits(base, token)) * STEP
            some |= np.int64(rest * bar <= np.float64(_at_most((scores[token] - peak) * cool)))
        if some:
            for token in range(begin, end):
                score, bits = (scores[token] - peak) / heat, _bits(base, token)
                if (1.0 - HALF - np.float64(bits) * STEP) * bar <= _at_most(score):
                    height = _height(score, bits)
                    if height > best or (height == best and token < winner):
                        best, winner = height, token
                        bar = exp(best) * SLACK
    return winner


@inline
def _key(score, token):  # type: ignore[no-untyped-def]
    """A number that orders tokens by score, of equals the lower id first."""
    bits = np.int64(np.float32(score + np.float32(0)).view(np.int32))  # -0 is 0
    return ((bits ^ SIGNLESS if bits < 0 else bits) << 32) | (LOW - token)


@inline
def _token(key):  # type: ignore[no-untyped-def]
    return LOW - (key & LOW)


@inline
def _sink(heap, place, size):  # type: ignore[no-untyped-def]
    """Put the key at a place where it belongs among the first `size` of a heap, whose least is at 0."""
    key, child = heap[place], 2 * place + 1
    while child < size:
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if key <= heap[child]:
            break
        heap[place] = heap[child]
        place, child = child, 2 * child + 1
    heap[place] = key


@inline
def _take(scores, begin, end, heap):  # type: ignore[no-untyped-def]
    """Put some more tokens in a heap of the best, each in place of the least one."""
    for token in range(begin, end):
        if scores[token] > scores[_token(heap[0])]:
            heap[0] = _key(scores[token], token)
            _sink(heap, 0, len(heap))


@inline
def _best(scores, width):  # type: ignore[no-untyped-def]
    """The `width` best tokens of a row [V], best first."""
    heap = np.empty(width, np.int64)
    for token in range(width):
        heap[token] = _key(scores[token], token)
    for place in range(width // 2 - 1, -1, -1):
        _sink(heap, place, width)
    whole = len(scores) - (len(scores) - width) % FEW
    for begin in range(width, whole, FEW):
        some = np.int64(scores.ctypes.data) + 4 * begin
        one = simd.larger(simd.load(some), simd.load(some + 64))
        other = simd.larger(simd.load(some + 128), simd.load(some + 192))
        if simd.largest(simd.larger(one, other)) > scores[_token(heap[0])]:
            _take(scores, begin, begin + FEW, heap)
    _take(scores, whole, len(scores), heap)
    for size in range(width - 1, 0, -1):
        heap[0], heap[size] = heap[size], heap[0]
        _sink(heap, 0, size)
    for place in range(width):
        heap[place] = _token(heap[place])
    return heap


@inline
def _among_best(scores, wish, total, base):  # type: ignore[no-untyped-def]
    """The winner of those of a row [V] that top_k, top_p and min_p leave; `total`: what all weigh, where
    top_p looks at all."""
    heat, top_p, min_p, size = wish[0], np.float64(wish[2]), np.float64(wish[3]), len(scores)
    count = np.int64(min(wish[1], size))
    width = count if count < size else min(LIKELY, size)
    while True:
        tokens = _best(scores, width)
        winner, peak = tokens[0], scores[tokens[0]]
        if count < size:
            total = 0.0
            for token in tokens:
                total += exp(np.float64((scores[token] - peak) / heat))
        share = top_p * total if top_p < 1 else np.inf
        best, before, enough = -np.inf, 0.0, width == count
        for token in tokens:
            score = (scores[token] - peak) / heat
            weight = exp(np.float64(score))
            if before >= share or weight < min_p or not weight:
                enough = True
                break
            height = _height(score, _bits(base, token))
            if height > best:
                best, winner = height, token
            before += weight
        if enough:
            return winner
        width = min(WIDER * width, count)


@kernel()
def _draw(scores, wishes, totals, bases, winners):  # type: ignore[no-untyped-def]
    for r in range(len(scores)):
        wish, base = wishes[r], bases[r]
        if wish[0] and (wish[1] < scores.shape[1] or wish[2] < 1 or wish[3]):
            winners[r] = _among_best(scores[r], wish, np.float64(totals[r]), base)
        else:
            winners[r] = _best(scores[r], 1)[0]
            if wish[0]:
                winners[r] = _among_all(scores[r], wish[0], base, winners[r])
