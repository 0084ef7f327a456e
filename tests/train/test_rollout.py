"""Rollouts in rows: each answer's tokens in their places, none left out."""

from __future__ import annotations

import torch

from qnext.train.rollout import Rollout, Row, in_rows


def rollout(prompt: int, answer: int, *, layers: int = 0) -> Rollout:
    """Ids of the prompt below 100, of the answer from 100 on."""
    experts = torch.full((prompt + answer, layers, 2), prompt) if layers else None
    return Rollout(
        tuple(range(prompt)),
        tuple(range(100, 100 + answer)),
        -torch.ones(answer),
        ended=True,
        experts=experts,
    )


def test_a_row_knows_where_its_answers_are() -> None:
    row = Row.of([rollout(3, 2), rollout(1, 4), rollout(2, 1)], "cpu")
    assert row.lengths == (5, 5, 3) and row.answers == (2, 4, 1)
    assert row.ids.tolist() == [0, 1, 2, 100, 101, 0, 100, 101, 102, 103, 0, 1, 100]
    assert row.ids[row.places].tolist() == [100, 101, 100, 101, 102, 103, 100]
    assert row.experts is None


def test_experts_lie_beside_their_tokens_or_not_at_all() -> None:
    row = Row.of([rollout(3, 2, layers=4), rollout(1, 4, layers=4)], "cpu")
    assert row.experts is not None and row.experts.shape == (10, 4, 2)
    assert row.experts[:, 0, 0].tolist() == [3] * 5 + [1] * 5
    assert Row.of([rollout(3, 2, layers=4), rollout(1, 4)], "cpu").experts is None


def test_rows_hold_what_fits() -> None:
    rollouts = [rollout(2, n) for n in (3, 1, 9, 2, 2, 1)]  # 5, 3, 11, 4, 4 and 3 tokens
    assert list(in_rows(rollouts, 8)) == [[0, 1], [2], [3, 4], [5]]
    assert list(in_rows(rollouts, 1)) == [[i] for i in range(6)]
    assert list(in_rows([], 8)) == []
