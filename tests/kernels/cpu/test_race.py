"""The race among a whole vocabulary: the winner is the one that all logarithms would find."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qnext.engine.request import SamplingParams
from qnext.engine.sampler import Row, draw_any, sample
from qnext.kernels.cpu.race import race

from ...engine.rows import sequence

ROWS, HEATS = 40, (1.0, 0.7, 1.9, 1e-9)


def rows(seed: int, count: int = ROWS) -> list[Row]:
    return [
        Row(sequence(sampling=SamplingParams(seed=seed + n), answer=(5,) * (n % 7))) for n in range(count)
    ]


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 4096, 151_936])
@pytest.mark.parametrize("spread", [0.0, 1.0, 8.0, 1e5])
def test_it_finds_the_winner(monkeypatch: pytest.MonkeyPatch, size: int, spread: float) -> None:
    count = ROWS if size < 10_000 else 3
    scores = torch.randn(count, size, generator=torch.Generator().manual_seed(size)) * spread
    found = draw_any(scores, rows(size, count))
    monkeypatch.setenv("QNEXT_KERNELS", "reference")
    assert found == draw_any(scores, rows(size, count))
    if size > 1 and spread == 1.0:
        assert any(token != best for token, best in zip(found, scores.argmax(-1).tolist(), strict=True))


def test_what_is_forbidden_never_wins() -> None:
    scores = torch.full((200, 600), -torch.inf)
    scores[:, 17], scores[:, 599] = 5.0, 4.5
    found = draw_any(scores, rows(3, 200))
    assert {17, 599} == set(found) and found.count(17) > found.count(599) > 20


def test_it_draws_as_often_as_it_should() -> None:
    scores = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().repeat(20_000, 1)
    wishes = SamplingParams(seed=0, temperature=1.0)
    one = sequence(sampling=wishes)
    found = []
    for n in range(2):
        for seed in range(n * 10_000, (n + 1) * 10_000):
            one.seed = seed
            found.append(sample(scores[:1], [Row(one)])[0])
    shares = np.bincount(found, minlength=4) / len(found)
    assert np.abs(shares - [0.5, 0.3, 0.15, 0.05]).max() < 0.015


def test_other_kinds_are_refused() -> None:
    heats, bases = np.ones(1, np.float32), np.zeros(1, np.int64)
    with pytest.raises(ValueError, match=r"kinds are torch\.float64, float32 and int64"):
        race(torch.zeros(1, 4, dtype=torch.float64), heats, bases)
    with pytest.raises(ValueError, match="2 rows have 1 heats and 1 bases"):
        race(torch.zeros(2, 4), heats, bases)
