"""The sampler: scores to tokens, for all rows of a step at once, each row by its own parameters.

Called by `engine` after the runner, and by `drafting` for guesses. Invariant: a row's token depends on its
scores, its parameters, its seed and its position alone, never on the other rows. The random numbers are a
hash of seed, position and token, so that recomputing a sequence draws the same tokens again, and a guess that
is drawn by the same dice as the answer is right as often as the two distributions are alike.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence as Rows
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qnext.kernels.cpu.race import race
from qnext.kernels.cpu.totals import log_totals
from qnext.kernels.select import packs

from .request import SamplingParams
from .sequence import Sequence

GOLDEN, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
WIDTHS = (32, 128, 1024)  # how many of the likeliest are looked at, until they are enough
GROUP = 16  # tokens are compared in groups first, where there are many
LIKELY = 64  # so many nearly always hold all that top_p wants


class Row(NamedTuple):
    """One row of scores: of a sequence, after so many `ahead` tokens that it may get; `allowed` [V'] are the
    tokens that its grammar allows (None: all)."""

    sequence: Sequence
    ahead: tuple[int, ...] = ()
    allowed: np.ndarray | None = None

    @property
    def wish(self) -> SamplingParams:
        return self.sequence.request.sampling


def sample(logits_RV: Tensor, rows: Rows[Row]) -> list[int]:
    """One token for each row. Scores must be finite or -inf, and not all -inf in a row."""
    scores = constrain(penalise(logits_RV, rows), rows)
    drawn = [i for i, row in enumerate(rows) if row.wish.temperature > 0]
    if len(drawn) == len(rows):
        return draw(scores, rows)
    tokens = likeliest(scores)
    if drawn:
        for i, token in zip(drawn, draw(scores[drawn], [rows[i] for i in drawn]), strict=True):
            tokens[i] = token
    return tokens


def likeliest(scores_RV: Tensor) -> list[int]:
    """The best token of each row; of equals the lowest id."""
    # numpy finds it ten times as soon as torch, where it can look
    found = scores_RV.numpy().argmax(-1) if scores_RV.device.type == "cpu" else scores_RV.argmax(-1)
    tokens: list[int] = found.tolist()
    return tokens


def penalise(logits_RV: Tensor, rows: Rows[Row]) -> Tensor:
    """Repetition penalty over prompt and answer, presence and frequency penalties over the answer."""
    parts = [
        (i, row.wish, *row.sequence.history.ahead(row.ahead))
        for i, row in enumerate(rows)
        if row.sequence.history is not None
    ]
    if not parts:
        return logits_RV
    device, scores = logits_RV.device, logits_RV.clone()
    sizes = [len(ids) for _, _, ids, _ in parts]
    where = torch.from_numpy(np.repeat([i for i, *_ in parts], sizes)).to(device)
    ids = torch.from_numpy(np.concatenate([ids for _, _, ids, _ in parts])).to(device)
    times = torch.from_numpy(np.concatenate([times for *_, times in parts])).to(device)

    def spread(values: list[float]) -> Tensor:
        return torch.from_numpy(np.repeat(np.asarray(values, np.float32), sizes)).to(device)

    old = scores[where, ids]
    factor = spread([bounded(wish.repetition_penalty) for _, wish, *_ in parts])
    less = spread([wish.presence_penalty for _, wish, *_ in parts]) * (times > 0)
    less = less + spread([wish.frequency_penalty for _, wish, *_ in parts]) * times
    scores[where, ids] = torch.where(old > 0, old / factor, old * factor) - less
    return scores


def constrain(scores_RV: Tensor, rows: Rows[Row]) -> Tensor:
    """Forbid what a row's grammar does not allow."""
    bound = [(i, row.allowed) for i, row in enumerate(rows) if row.allowed is not None]
    if not bound:
        return scores_RV
    masks = np.zeros((len(bound), scores_RV.shape[1]), bool)
    for mask, (_, allowed) in zip(masks, bound, strict=True):
        mask[: len(allowed)] = allowed[: len(mask)]
    where = torch.tensor([i for i, _ in bound], device=scores_RV.device)
    kept = torch.from_numpy(masks).to(scores_RV.device)
    return scores_RV.index_copy(0, where, scores_RV[where].masked_fill(~kept, float("-inf")))


def draw(scores_RV: Tensor, rows: Rows[Row]) -> list[int]:
    """One token a row, with the probabilities that `distribution` has (the Gumbel-max trick: the likeliest
    after each was given a random handicap)."""
    size = scores_RV.shape[1]
    found = [0] * len(rows)
    groups: dict[int, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(_width(row.wish, size), []).append(i)
    while groups:
        width, members = groups.popitem()
        some = [rows[i] for i in members]
        scores = scores_RV if len(members) == len(rows) else scores_RV[members]
        if not width:
            tokens, enough = draw_any(scores, some), [True] * len(some)
        else:
            chances, ids, whole = distribution(scores, some, width)
            tokens, enough = _race(chances.log(), some, ids), whole.tolist()
        for i, token, fine in zip(members, tokens, enough, strict=True):
            if fine:
                found[i] = token
            else:
                groups.setdefault(_wider(width, size), []).append(i)
    return found


def _width(wish: SamplingParams, size: int) -> int:
    """How many of the likeliest tokens to look at first; 0 where nothing is cut off."""
    if not wish.top_k and wish.top_p == 1 and not wish.min_p:
        return 0
    return _wider(wish.top_k or LIKELY, size)


def _wider(count: int, size: int) -> int:
    place = bisect(WIDTHS, count)
    return size if place == len(WIDTHS) else min(WIDTHS[place], size)


def distribution(scores_RV: Tensor, rows: Rows[Row], width: int) -> tuple[Tensor, Tensor, Tensor]:
    """What is drawn from: the chances of the `width` likeliest tokens, best first, and their ids [R, W]; and
    whether nothing was lost by looking at no more [R].

    Temperature first, then `top_k`, then `top_p` over what is left, then `min_p` relative to the likeliest.
    Of equals, lower ids come first.
    """
    device, size = scores_RV.device, scores_RV.shape[1]
    values, ids = best(scores_RV, width)
    wanted = [min(row.wish.top_k or size, size) for row in rows]
    # 1 is "off": rounding may bring the running sum to 1 before the last token
    wishes = [
        (bounded(wish.temperature), count, wish.top_p if wish.top_p < 1 else 2.0, wish.min_p)
        for wish, count in zip((row.wish for row in rows), wanted, strict=True)
    ]
    table = torch.from_numpy(np.asarray(wishes, np.float32)).to(device)
    heat, counts, top_p, min_p = table.split(1, 1)
    # Shifted first: a tiny temperature then makes -inf of all but the best, never inf - inf.
    scaled = (values - values[:, :1]) / heat
    scaled = scaled.masked_fill(torch.arange(width, device=device) >= counts, float("-inf"))
    whole = scaled.logsumexp(-1, keepdim=True)
    # Where `top_p` looks at shares of more tokens than these, they are shares of all.
    if open_ended := [i for i, count in enumerate(wanted) if count > width and wishes[i][2] < 1]:
        some = scores_RV if len(open_ended) == len(rows) else scores_RV[open_ended]
        whole[open_ended] = log_total(some, [wishes[i][0] for i in open_ended])[:, None]
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


def _tempered(scores_RV: Tensor, rows: Rows[Row]) -> Tensor:
    """Scores below the best, over the temperature."""
    heat = torch.tensor([bounded(row.wish.temperature) for row in rows], device=scores_RV.device)
    return (scores_RV - scores_RV.amax(-1, keepdim=True)) / heat[:, None]


def log_total(scores_RV: Tensor, heats: Rows[float]) -> Tensor:
    """The logarithm of what all tokens of each row [R] weigh, the likeliest being 1."""
    if packs(scores_RV.device.type):
        return log_totals(scores_RV, np.asarray(heats, np.float32))
    below = scores_RV - scores_RV.amax(-1, keepdim=True)
    return (below / torch.tensor(heats, device=below.device)[:, None]).logsumexp(-1)


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


def draw_any(scores_RV: Tensor, rows: Rows[Row]) -> list[int]:
    """One of all tokens a row; where there are kernels, only those that may win take part in the race."""
    if packs(scores_RV.device.type):
        heats = np.asarray([bounded(row.wish.temperature) for row in rows], np.float32)
        winners: list[int] = race(scores_RV, heats, _bases(rows)).tolist()
        return winners
    everyone = torch.arange(scores_RV.shape[1], device=scores_RV.device)[None]
    return _race(_tempered(scores_RV, rows), rows, everyone)


def _race(logs_RW: Tensor, rows: Rows[Row], ids_RW: Tensor) -> list[int]:
    """Each row's winner after every token's handicap -log(-log(u)); u is a hash of seed, place and token."""
    base = torch.from_numpy(_bases(rows)).to(logs_RW.device)[:, None]
    ids = ids_RW.expand(len(rows), -1)
    numbers = _hash(base + (ids + 1) * _signed(GOLDEN))
    chances = ((numbers >> 12) & (2**52 - 1)).double() * 2.0**-52 + 2.0**-53  # never 0, never 1
    best = (logs_RW.double() - (-chances.log()).log()).argmax(-1)
    tokens: list[int] = ids.gather(-1, best[:, None])[:, 0].tolist()
    return tokens


def _bases(rows: Rows[Row]) -> np.ndarray:
    """Where each row's random numbers begin."""
    seeds = np.asarray([row.sequence.seed for row in rows], np.uint64)
    places = np.asarray([row.sequence.generated + len(row.ahead) for row in rows], np.uint64)
    return _mixed(seeds, places)


def _hash(z: Tensor) -> Tensor:
    """The finaliser of splitmix64 (Steele et al. 2014) on 64-bit integers."""
    z = (z ^ ((z >> 30) & (2**34 - 1))) * _signed(FIRST)
    z = (z ^ ((z >> 27) & (2**37 - 1))) * _signed(SECOND)
    return z ^ ((z >> 31) & (2**33 - 1))


def _mixed(seeds: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Draw `place` of each seed [R], unsigned 64-bit integers both, as signed ones."""
    z = seeds * np.uint64(0xD1342543DE82EF95) + (places + np.uint64(1)) * np.uint64(GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(FIRST)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(SECOND)
    draws: np.ndarray = (z ^ (z >> np.uint64(31))).view(np.int64)
    return draws


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def bounded(value: float) -> float:
    """Any legal factor, brought to where fp32 neither overflows nor divides by zero."""
    return min(max(value, 1e-6), 1e6)
