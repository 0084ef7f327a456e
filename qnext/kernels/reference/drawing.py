"""Drawing tokens from rows of scores: what a draw is, on any device.

Called by `engine/sampler` and `engine/reports`; the twin of `cpu/drawing`. Invariant: a row's token depends
on its scores, its wish and where its random numbers begin alone, never on the other rows. The random numbers
are a hash, so that the same draw can be made again.

A table of wishes [R, 4] fp32 holds for each row the temperature (0: the likeliest token is taken), top_k (as
many as there are tokens where nothing is cut off), top_p (more than 1 where it is off: rounding may bring a
running sum to 1 before the last token) and min_p.
"""

from __future__ import annotations

from bisect import bisect

import numpy as np
import torch
from torch import Tensor

GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
WIDTHS = (32, 128, 1024)  # how many of the likeliest are looked at, until they are enough
GROUP = 16  # tokens are compared in groups first, where there are many
LIKELY = 64  # so many nearly always hold all that top_p wants


def draw(scores_RV: Tensor, wishes_R4: np.ndarray, bases_R: np.ndarray) -> np.ndarray:
    """One token a row [R] int64, with the probabilities that `distribution` has (the Gumbel-max trick: the
    likeliest after each was given a random handicap). `bases` int64: where random numbers begin."""
    size = scores_RV.shape[1]
    found: np.ndarray = scores_RV.argmax(-1).cpu().numpy()
    groups: dict[int, list[int]] = {}
    for i, (heat, count, top_p, min_p) in enumerate(wishes_R4.tolist()):
        free = count == size and top_p >= 1 and not min_p
        if heat:
            width = 0 if free else _wider(count if count < size else LIKELY, size)
            groups.setdefault(width, []).append(i)
    while groups:
        width, some = groups.popitem()
        scores = scores_RV if len(some) == len(found) else scores_RV[some]
        wishes, bases = wishes_R4[some], bases_R[some]
        if width:
            chances, ids, whole = distribution(scores, wishes, width)
            tokens, enough = _race(chances.log(), bases, ids), whole.tolist()
        else:
            everyone = torch.arange(size, device=scores.device)[None]
            tokens, enough = _race(_tempered(scores, wishes), bases, everyone), [True] * len(some)
        for i, token, fine in zip(some, tokens.tolist(), enough, strict=True):
            if fine:
                found[i] = token
            else:
                groups.setdefault(_wider(width, size), []).append(i)
    return found


def _wider(count: float, size: int) -> int:
    place = bisect(WIDTHS, count)
    return size if place == len(WIDTHS) else min(WIDTHS[place], size)


def distribution(scores_RV: Tensor, wishes_R4: np.ndarray, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """What is drawn from: the chances of the `width` likeliest tokens, best first, and their ids [R, W]; and
    whether nothing was lost by looking at no more [R].

    Temperature first, then `top_k`, then `top_p` over what is left, then `min_p` relative to the likeliest.
    Of equals, lower ids come first.
    """
    device, size = scores_RV.device, scores_RV.shape[1]
    values, ids = best(scores_RV, width)
    heat, counts, top_p, min_p = torch.from_numpy(wishes_R4).to(device).split(1, 1)
    # Shifted first: a tiny temperature then makes -inf of all but the best, never inf - inf.
    scaled = (values - values[:, :1]) / heat
    scaled = scaled.masked_fill(torch.arange(width, device=device) >= counts, float("-inf"))
    whole = scaled.logsumexp(-1, keepdim=True)
    # Where `top_p` looks at shares of more tokens than these, they are shares of all.
    if (some := np.flatnonzero((wishes_R4[:, 1] > width) & (wishes_R4[:, 2] < 1)).tolist()) != []:
        whole[some] = log_totals(scores_RV[some], wishes_R4[some, 0])[:, None]
    shares = (scaled - whole).exp()
    before = shares.cumsum(-1) - shares
    kept = (before < top_p) & (shares >= shares[:, :1] * min_p)
    kept &= shares > 0
    kept[:, 0] = True
    last = kept.sum(-1, keepdim=True).clamp(max=counts.long()) - 1
    # Beyond the width there may be equals of the last value: the lower ids of them would count.
    enough = (values.gather(-1, last) > values[:, -1:])[:, 0] & (
        (counts[:, 0] >= size) | (counts[:, 0] < width)
    )
    chances = shares * kept
    return chances / chances.sum(-1, keepdim=True), ids, enough | (width == size)


def log_totals(scores_RV: Tensor, heats_R: np.ndarray) -> Tensor:
    """log(sum(exp((score - the row's largest) / heat))) [R]."""
    return _tempered(scores_RV, heats_R[:, None]).logsumexp(-1)


def _tempered(scores_RV: Tensor, wishes_R4: np.ndarray) -> Tensor:
    """Scores below the best, over the temperature."""
    heats = torch.from_numpy(wishes_R4[:, :1]).to(scores_RV.device)
    return (scores_RV - scores_RV.amax(-1, keepdim=True)) / heats


def best(scores_RV: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The best `width` values and their ids, best first, of equals the lower id first."""
    if width == scores_RV.shape[1]:
        values, ids = scores_RV.sort(dim=-1, descending=True, stable=True)
        return values, ids
    values, ids = _top(scores_RV, width)
    order = ids.argsort(-1)
    values, ids = values.gather(-1, order), ids.gather(-1, order)
    values, order = values.sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(-1, order)


def _top(scores_RV: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The best `width` values and their ids, in any order."""
    size = scores_RV.shape[1]
    count = size // GROUP
    if count < 4 * width:
        found = scores_RV.topk(width, sorted=False)
        return found.values, found.indices
    # Group g holds the ids g, g + count, ... The best are in the groups whose own best are the best of all.
    ends = torch.arange(0, size, count, device=scores_RV.device)
    bests = scores_RV[:, : GROUP * count].unflatten(1, (GROUP, count)).amax(1)
    ids = (bests.topk(width, sorted=False).indices[:, :, None] + ends[:GROUP]).flatten(1)
    rest = torch.arange(GROUP * count, size, device=scores_RV.device).expand(len(ids), -1)
    ids = torch.cat((ids, rest), 1)
    values, places = scores_RV.gather(1, ids).topk(width, sorted=False)
    return values, ids.gather(1, places)


def bases(seeds_R: np.ndarray, places_R: np.ndarray) -> np.ndarray:
    """Where the random numbers of a place of a text begin, for each seed: unsigned 64-bit integers both."""
    z = seeds_R * np.uint64(0xD1342543DE82EF95) + (places_R + np.uint64(1)) * np.uint64(GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(FIRST)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(SECOND)
    found: np.ndarray = (z ^ (z >> np.uint64(31))).view(np.int64)
    return found


def _race(logs_RW: Tensor, bases_R: np.ndarray, ids_RW: Tensor) -> Tensor:
    """Each row's winner after every token's handicap -log(-log(u)); u is a hash of seed, place and token."""
    base = torch.from_numpy(bases_R).to(logs_RW.device)[:, None]
    ids = ids_RW.expand(len(logs_RW), -1)
    numbers = _hash(base + (ids + 1) * _signed(GOLDEN))
    chances = ((numbers >> 12) & (2**52 - 1)).double() * 2.0**-52 + 2.0**-53  # never 0, never 1
    first = (logs_RW.double() - (-chances.log()).log()).argmax(-1)
    return ids.gather(-1, first[:, None])[:, 0]


def _hash(z: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele et al. 2014) on 64-bit integers."""
    z = (z ^ ((z >> 30) & (2**34 - 1))) * _signed(FIRST)
    z = (z ^ ((z >> 27) & (2**37 - 1))) * _signed(SECOND)
    return z ^ ((z >> 31) & (2**33 - 1))


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value
