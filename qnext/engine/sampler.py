"""The sampler: scores to tokens, for all rows of a step at once, each row by its own parameters.

Called by `engine` after the runner, and by `drafting` for guesses. Invariant: a row's token depends on its
scores, its parameters, its seed and its position alone, never on the other rows. The random numbers are a
hash of seed, position and token, so that recomputing a sequence draws the same tokens again, and a guess that
is drawn by the same dice as the answer is right as often as the two distributions are alike.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qnext.kernels.cpu import drawing as fast
from qnext.kernels.reference import drawing as plain
from qnext.kernels.select import packs

from .request import SamplingParams
from .sequence import Sequence


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
    if all(not row.wish.temperature for row in rows):
        return likeliest(scores)
    return draw(scores, rows)


def draw(scores_RV: Tensor, rows: Rows[Row]) -> list[int]:
    """The same, of scores that are penalised and constrained already."""
    seeds = np.asarray([row.sequence.seed for row in rows], np.uint64)
    places = np.asarray([row.sequence.generated + len(row.ahead) for row in rows], np.uint64)
    wishes, bases = table(rows, scores_RV.shape[1]), plain.bases(seeds, places)
    kernels = fast if packs(scores_RV.device.type) else plain
    tokens: list[int] = kernels.draw(scores_RV, wishes, bases).tolist()
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


def table(rows: Rows[Row], size: int) -> np.ndarray:
    """What rows wish of a draw among `size` tokens [R, 4]: see `reference/drawing`."""
    wishes = [
        (
            wish.temperature and bounded(wish.temperature),
            min(wish.top_k or size, size),
            wish.top_p if wish.top_p < 1 else 2.0,
            wish.min_p,
        )
        for wish in (row.wish for row in rows)
    ]
    return np.asarray(wishes, np.float32)


def bounded(value: float) -> float:
    """Any legal factor, brought to where fp32 neither overflows nor divides by zero."""
    return min(max(value, 1e-6), 1e6)
