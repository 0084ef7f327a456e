"""The sampler: scores to tokens, for all rows of a step at once, each row by its own parameters.

Called by `engine` after the runner. Invariant: a row's token depends on its scores, its parameters, its seed
and its position alone, never on the other rows; the random number is a hash of seed and position, so that
recomputing a sequence draws the same tokens again.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from .request import SamplingParams, TokenLogprob
from .sequence import Sequence

MASK = 2**64 - 1


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) for draw `index` of a seed (the splitmix64 generator, Steele et al. 2014)."""
    z = (seed * 0xD1342543DE82EF95 + (index + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return ((z ^ (z >> 31)) >> 11) * 2.0**-53


def sample(logits_RV: Tensor, sequences: Rows[Sequence]) -> list[int]:
    """One token for each row. Scores must be finite or -inf, and not all -inf in a row."""
    params = [sequence.request.sampling for sequence in sequences]
    scores = penalise(logits_RV, sequences)
    tokens: list[int] = scores.argmax(-1).tolist()
    drawn = [row for row, wish in enumerate(params) if wish.temperature > 0]
    if drawn:
        numbers = [uniform(sequences[row].seed, sequences[row].generated) for row in drawn]
        picks = draw(scores[drawn], [params[row] for row in drawn], numbers)
        for row, token in zip(drawn, picks, strict=True):
            tokens[row] = token
    return tokens


def penalise(logits_RV: Tensor, sequences: Rows[Sequence]) -> Tensor:
    """Repetition penalty over prompt and answer, presence and frequency penalties over the answer."""
    scores = logits_RV
    for row, sequence in enumerate(sequences):
        wish = sequence.request.sampling
        if wish.repetition_penalty == 1 and not wish.presence_penalty and not wish.frequency_penalty:
            continue
        if scores is logits_RV:
            scores = logits_RV.clone()
        if wish.repetition_penalty != 1:
            seen = torch.tensor(sorted(set(sequence.tokens)), device=scores.device)
            old, penalty = scores[row, seen], _bounded(wish.repetition_penalty)
            scores[row, seen] = torch.where(old > 0, old / penalty, old * penalty)
        if sequence.counts:
            used = torch.tensor(list(sequence.counts), device=scores.device)
            times = torch.tensor(list(sequence.counts.values()), dtype=torch.float32, device=scores.device)
            scores[row, used] -= wish.presence_penalty + wish.frequency_penalty * times
    return scores


def _bounded(value: float) -> float:
    """Any legal factor, brought to where fp32 neither overflows nor divides by zero."""
    return min(max(value, 1e-6), 1e6)


def distribution(scores_RV: Tensor, params: Rows[SamplingParams]) -> tuple[Tensor, Tensor]:
    """What `draw` draws from: probabilities [R, V], likeliest first, and the token ids [R, V] they belong to.

    Temperature first, then `top_k`, then `top_p` over what is left, then `min_p` relative to the likeliest.
    """
    device = scores_RV.device

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=device)[:, None]

    # Shifted first: a tiny temperature then makes -inf of all but the best, never inf - inf.
    shifted = scores_RV - scores_RV.amax(-1, keepdim=True)
    ordered, ids = (shifted / column([_bounded(wish.temperature) for wish in params])).sort(
        dim=-1, descending=True, stable=True
    )
    size = scores_RV.shape[1]
    rank = torch.arange(size, device=device)
    probs = ordered.masked_fill(
        rank >= column([min(wish.top_k or size, size) for wish in params]), float("-inf")
    ).softmax(-1)
    before = probs.cumsum(-1) - probs
    # 1 is "off": rounding may bring the running sum to 1 before the last token
    kept = (before < column([wish.top_p if wish.top_p < 1 else 2.0 for wish in params])) & (
        probs >= probs[:, :1] * column([wish.min_p for wish in params])
    )
    kept[:, 0] = True
    probs = probs * kept
    return probs / probs.sum(-1, keepdim=True), ids


def draw(scores_RV: Tensor, params: Rows[SamplingParams], numbers: list[float]) -> list[int]:
    """One token a row: where the running sum of its probabilities first exceeds its number."""
    probs, ids = distribution(scores_RV, params)
    sums = probs.double().cumsum(-1)
    targets = torch.tensor(numbers, dtype=torch.float64, device=sums.device)[:, None] * sums[:, -1:]
    places = torch.searchsorted(sums, targets, right=True)
    # Rounding may put the target on the last sum: stay on tokens that have a chance.
    places = torch.minimum(places, (probs > 0).sum(-1, keepdim=True) - 1).clamp(min=0)
    tokens: list[int] = ids.gather(-1, places)[:, 0].tolist()
    return tokens


def logprobs(logits_RV: Tensor, tokens: list[int], sequences: Rows[Sequence]) -> list[TokenLogprob | None]:
    """Log-probabilities under the model itself, before penalties and temperature, for the rows that asked."""
    found: list[TokenLogprob | None] = [None] * len(tokens)
    for row, (token, sequence) in enumerate(zip(tokens, sequences, strict=True)):
        count = sequence.request.sampling.logprobs
        if count is not None:
            scores = logits_RV[row].log_softmax(-1)
            best = scores.topk(min(count, len(scores)))
            top = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            found[row] = TokenLogprob(token, float(scores[token]), top)
    return found
