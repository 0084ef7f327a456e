"""Guessing ahead does not change what is sampled: counts of tokens at every place of many answers, with and
without guesses and with other seeds, come from one distribution (chi-square of homogeneity).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from qnext.engine.config import EngineConfig
from qnext.engine.engine import Engine
from qnext.engine.request import Request, SamplingParams

from ..model.tiny import VOCABULARY, token_ids
from .harness import MODEL

LENGTH = 10  # tokens of an answer
PROMPT = tuple(token_ids(40, seed=5).tolist())


def counts(drafts: int, answers: int, first_seed: int, **sampling: Any) -> Tensor:
    """How often each token stood at each place -> [LENGTH, V]."""
    found = torch.zeros(LENGTH, VOCABULARY, dtype=torch.long)
    config = EngineConfig(max_sequences=64, draft_tokens=drafts, fixed_drafts=True, cache_bytes=1 << 24)
    with Engine(MODEL, config) as engine:
        for start in range(first_seed, first_seed + answers, 500):
            wishes = (
                SamplingParams(max_tokens=LENGTH, seed=seed, **{"temperature": 0.8, **sampling})
                for seed in range(start, min(start + 500, first_seed + answers))
            )
            streams = [engine.submit(Request(PROMPT, each, ())) for each in wishes]
            for stream in streams:
                ids = [token for output in stream for token in output.token_ids]
                found[torch.arange(LENGTH), torch.tensor(ids)] += 1
        if drafts:
            count = engine.stats().counters
            assert 0 < count.accepted_tokens < count.drafted_tokens
    return found


def likeness(one: Tensor, other: Tensor) -> float:
    """The least chance, over all places, of counts [LENGTH, V] that differ so much if the distribution is the
    same; times the number of places (Bonferroni)."""
    least = 1.0
    for a, b in zip(one.double(), other.double(), strict=True):
        often = a + b >= 10
        table = torch.stack([torch.cat((each[often], each[~often].sum()[None])) for each in (a, b)])
        table = table[:, table.sum(0) > 0]
        expected = table.sum(1, keepdim=True) * table.sum(0) / table.sum()
        statistic = ((table - expected) ** 2 / expected).sum()
        freedom = torch.tensor((table.shape[1] - 1) / 2, dtype=torch.double)
        least = min(least, float(torch.special.gammaincc(freedom, statistic / 2)))
    return least * LENGTH


def test_the_comparison_sees_another_temperature() -> None:
    plain = counts(0, 1000, 0)
    assert likeness(plain, counts(0, 1000, 10**6)) > 0.01
    assert likeness(plain, counts(0, 1000, 10**6, temperature=0.4)) < 1e-4


def test_a_thousand_answers_with_guesses() -> None:
    assert likeness(counts(0, 1000, 0), counts(2, 1000, 10**6)) > 0.01


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("more", [{}, {"top_p": 0.8, "presence_penalty": 0.5}])
def test_two_hundred_thousand_tokens_with_guesses(more: dict[str, float]) -> None:
    found = likeness(counts(0, 20_000, 0, **more), counts(3, 20_000, 10**6, **more))
    print("likeness", found)
    assert found > 0.01
