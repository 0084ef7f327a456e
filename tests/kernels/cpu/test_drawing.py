"""Drawing tokens: the winner of each row is the one that its twin finds, which looks at all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from qnext.kernels.cpu.drawing import draw
from qnext.kernels.reference import drawing as twin

ROWS, NEVER = 40, -torch.inf


def random_scores(rows: int, size: int, spread: float, *, ties: bool = False) -> Tensor:
    scores = torch.randn(rows, size, generator=torch.Generator().manual_seed(size)) * spread
    scores = (scores / 2).round() if ties else scores
    scores[::3, : size // 3] = NEVER
    return scores


def wish(size: int, heat: float = 1.0, top_k: int = 0, top_p: float = 2.0, min_p: float = 0.0) -> np.ndarray:
    return np.asarray([(heat, top_k or size, top_p, min_p)], np.float32)


def random_wishes(rows: int, size: int) -> np.ndarray:
    """No `top_p` is a round number: where many are equal, rounding would decide."""
    dice = np.random.default_rng(size)
    return np.stack(
        [
            dice.choice([0, 1e-6, 0.3, 0.7, 1, 2], rows),
            np.minimum(dice.choice([size, 1, 5, 20, 70, 500, 3000], rows), size),
            dice.choice([2, 0.113, 0.5291, 0.831, 0.9573, 0.9991], rows),
            dice.choice([0, 0, 0.03, 0.3, 1], rows),
        ],
        1,
    ).astype(np.float32)


def beginnings(rows: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, rows)


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 300, 4096, 151_936])
@pytest.mark.parametrize("spread", [0.5, 4.0, 30.0])
@pytest.mark.parametrize("ties", [False, True])
def test_it_finds_the_winner_whatever_is_wished(size: int, spread: float, ties: bool) -> None:
    rows = 300 if size < 10_000 else 12
    scores = random_scores(rows, size, spread, ties=ties)
    wishes, bases = random_wishes(rows, size), beginnings(rows)
    found = draw(scores, wishes, bases)
    assert found.tolist() == twin.draw(scores, wishes, bases).tolist()
    for i in range(0, rows, 7):  # nobody's neighbours matter
        assert draw(scores[i : i + 1], wishes[i : i + 1], bases[i : i + 1])[0] == found[i]


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 4096, 151_936])
@pytest.mark.parametrize("spread", [0.0, 1.0, 8.0, 1e5])
def test_it_finds_the_winner_among_all(size: int, spread: float) -> None:
    rows = ROWS if size < 10_000 else 3
    scores = random_scores(rows, size, spread)
    for heat in (1.0, 0.7, 1e-6):
        wishes = wish(size, heat).repeat(rows, 0)
        found = draw(scores, wishes, beginnings(rows))
        assert found.tolist() == twin.draw(scores, wishes, beginnings(rows)).tolist()
        if size > 2 and spread == heat == 1.0:
            assert found.tolist() != scores.argmax(-1).tolist()


def test_of_equals_the_lower_ids_come_first() -> None:
    scores = torch.zeros(ROWS, 500)
    scores[:, ::2] = -0.0  # no less than 0
    for count in (1, 3, 100):
        found = draw(scores, wish(500, top_k=count).repeat(ROWS, 0), beginnings(ROWS))
        assert found.max() < count and len(set(found.tolist())) > min(count, 10) // 2
    assert not draw(scores, wish(500, heat=0).repeat(ROWS, 0), beginnings(ROWS)).any()


@pytest.mark.parametrize("fields", [{}, {"top_k": 50}, {"top_p": 0.99}, {"min_p": 0.01}], ids=str)
def test_what_is_forbidden_never_wins(fields: dict[str, float]) -> None:
    scores = torch.full((200, 600), NEVER)
    scores[:, 17], scores[:, 599] = 5.0, 4.5
    found = draw(scores, wish(600, **fields).repeat(200, 0), beginnings(200)).tolist()  # type: ignore[arg-type]
    assert {17, 599} == set(found) and found.count(17) > found.count(599) > 20


@pytest.mark.parametrize("fields", [{}, {"top_k": 4}, {"top_p": 0.9999}], ids=str)
def test_it_draws_as_often_as_it_should(fields: dict[str, float]) -> None:
    rows, chances = 20_000, [0.5, 0.3, 0.15, 0.05]
    scores = torch.tensor([*chances, 0.0]).log().repeat(rows, 1)
    found = draw(scores, wish(5, **fields).repeat(rows, 0), beginnings(rows))  # type: ignore[arg-type]
    shares = np.bincount(found, minlength=5) / rows
    assert np.abs(shares - [*chances, 0]).max() < 0.015 and not shares[4]


def test_other_kinds_are_refused() -> None:
    wishes, bases = wish(4), np.zeros(1, np.int64)
    with pytest.raises(ValueError, match=r"kinds are torch\.float64, float32 and int64"):
        draw(torch.zeros(1, 4, dtype=torch.float64), wishes, bases)
    with pytest.raises(ValueError, match=r"2 rows have wishes \[1, 4\] and 1 bases"):
        draw(torch.zeros(2, 4), wishes, bases)
