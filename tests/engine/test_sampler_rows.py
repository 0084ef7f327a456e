"""What the sampler does to scores before a draw, what it reports, and wishes at the edge of what is legal."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qnext.engine.reports import logprobs
from qnext.engine.request import SamplingParams
from qnext.engine.sampler import Row, constrain, draw, penalise, sample

from .rows import sequence
from .test_sampler import NEVER, VOCABULARY, die, found_chances, random_scores
from .twins import penalised

tokens = st.lists(st.integers(0, VOCABULARY - 1), max_size=12)
penalties = st.fixed_dictionaries(
    {
        "repetition_penalty": st.sampled_from([1.0, 1.3, 0.7]),
        "presence_penalty": st.sampled_from([0.0, 1.5, -1.0]),
        "frequency_penalty": st.sampled_from([0.0, 0.5, -0.7]),
    }
)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(penalties, tokens, tokens, tokens), min_size=1, max_size=4), st.integers(0, 99))
def test_penalties_equal_their_twin_drafts_included(
    wishes: list[tuple[dict[str, Any], list[int], list[int], list[int]]], seed: int
) -> None:
    rows = [
        Row(sequence((3, *prompt), SamplingParams(**fields), answer=answer), tuple(drafts))
        for fields, prompt, answer, drafts in wishes
    ]
    scores = random_scores(len(rows), seed=seed)
    scores[:, 8] = NEVER
    before = scores.clone()
    found = penalise(scores, rows)
    for row, old, new in zip(rows, scores, found, strict=True):
        then = sequence(
            row.sequence.request.prompt,
            row.wish,
            answer=row.sequence.tokens[len(row.sequence.request.prompt) :],
        )
        for token in row.ahead:
            then.extend(token, None)
        assert new.tolist() == pytest.approx(penalised(old.tolist(), then), rel=1e-5, abs=1e-6)
        if row.sequence.history is None:
            assert new.equal(old)
    assert scores.equal(before)  # reports are made from the scores as they were


def test_penalties_of_one_row_leave_the_others_alone() -> None:
    rows = [Row(sequence()), Row(sequence((1,), SamplingParams(repetition_penalty=2.0))), Row(sequence())]
    scores = random_scores(3)
    found = penalise(scores, rows)
    assert found[[0, 2]].equal(scores[[0, 2]]) and not found[1].equal(scores[1])


def test_a_grammar_forbids_the_rest_and_what_lies_beyond_it() -> None:
    scores = random_scores(3)
    short, full = np.zeros(30, bool), np.ones(VOCABULARY, bool)
    short[[4, 7]], full[0] = True, False
    found = constrain(scores, [Row(sequence(), (), short), Row(sequence()), Row(sequence(), (), full)])
    assert (found[0] > NEVER).nonzero()[:, 0].tolist() == [4, 7]
    assert found[0, [4, 7]].equal(scores[0, [4, 7]]) and found[1].equal(scores[1])
    assert found[2, 0] == NEVER and found[2, 1:].equal(scores[2, 1:])


@pytest.mark.parametrize("fields", [{"temperature": 0}, {}, {"top_k": 3}, {"top_p": 0.99}], ids=str)
def test_only_what_the_grammar_allows_is_chosen(fields: dict[str, Any]) -> None:
    allowed = np.zeros(30, bool)
    allowed[[4, 7]] = True
    made = [Row(sequence(sampling=SamplingParams(seed=n, **fields)), (), allowed) for n in range(50)]
    found = set(sample(random_scores(1).expand(50, -1) * 0.1, made))
    assert found <= {4, 7} and len(found) == (1 if fields.get("temperature") == 0 else 2)


@pytest.mark.parametrize(
    "scores",
    [
        [1.0, 2.0, 3.0, 2.5],
        [1e30, -1e30, 3e38, 0.0],
        [-3e38, -2e38, -1e38, -3e38],
        [NEVER, NEVER, 5.0, NEVER],
        [3e38, 3e38, 3.1e38, NEVER],
    ],
    ids=str,
)
@pytest.mark.parametrize("temperature", [1e-6, 1e-45, 1e-300])
@pytest.mark.parametrize("cut", [{}, {"top_p": 0.9, "top_k": 3, "min_p": 0.01}], ids=["free", "cut"])
def test_a_tiny_temperature_is_greedy(scores: list[float], temperature: float, cut: dict[str, Any]) -> None:
    wish = SamplingParams(temperature=temperature, **cut)
    found = draw(torch.tensor([scores]).expand(50, -1), [die(wish, seed) for seed in range(50)])
    assert found == [scores.index(max(scores))] * 50


@pytest.mark.parametrize("temperature", [1e5, 1e39, 1e300])
def test_a_huge_temperature_is_even(temperature: float) -> None:
    scores = torch.tensor([5.0, NEVER, -7.0, 0.0])
    found = found_chances(scores, SamplingParams(temperature=temperature))
    assert found == pytest.approx({0: 1 / 3, 2: 1 / 3, 3: 1 / 3}, rel=1e-3)
    tokens = draw(
        scores.expand(300, -1), [die(SamplingParams(temperature=temperature), i) for i in range(300)]
    )
    assert {0, 2, 3} == set(tokens)


EXTREMES: list[dict[str, Any]] = [
    {"repetition_penalty": 1e-300},
    {"repetition_penalty": 1e300},
    {"repetition_penalty": 1e-40, "temperature": 1e-40},
    {"top_k": 10**400},
    {"top_p": 1e-300},
    {"min_p": 1.0, "top_p": 1e-9},
    {"logprobs": 20},
]


@pytest.mark.parametrize("fields", EXTREMES, ids=str)
def test_no_legal_wish_can_hurt_the_rows_beside_it(fields: dict[str, Any]) -> None:
    scores = random_scores(2, size=9)
    scores[:, 1], scores[:, 4] = 0.0, NEVER
    neighbour = Row(sequence(sampling=SamplingParams(seed=5)))
    rows = [Row(sequence((1, 2, 3, 4), SamplingParams(seed=1, **fields))), neighbour]
    tokens = sample(scores, rows)
    assert scores[0, tokens[0]] > NEVER
    assert tokens[1:] == sample(scores[1:], [neighbour])
    logprobs(scores, tokens, rows)


def test_a_draw_stays_on_tokens_that_have_a_chance() -> None:
    scores = torch.full((400, 50), NEVER)
    scores[:, [7, 30]] = 1.0
    for wish in (SamplingParams(), SamplingParams(top_k=40), SamplingParams(min_p=0.01)):
        found = draw(scores, [die(wish, seed) for seed in range(400)])
        assert set(found) == {7, 30} and 150 < found.count(7) < 250


def test_logprobs_are_the_models_own() -> None:
    """Before penalties and temperature, so that they can be compared between requests."""
    scores = random_scores(3)
    wishes = [SamplingParams(temperature=0.1, logprobs=3, presence_penalty=2.0), SamplingParams()]
    wishes.append(SamplingParams(logprobs=0))
    rows = [Row(sequence(sampling=wish, answer=(2,))) for wish in wishes]
    first, second, third = logprobs(scores, [2, 5, 7], rows)
    assert second is None and first is not None and third is not None
    for report, row, token in ((first, 0, 2), (third, 2, 7)):
        grown = [math.exp(score) for score in scores[row].tolist()]
        assert report.token_id == token
        assert report.logprob == pytest.approx(math.log(grown[token] / sum(grown)), abs=1e-5)
    assert third.top == ()
    best = sorted(range(VOCABULARY), key=lambda i: -scores[0, i])[:3]
    assert [token for token, _ in first.top] == best
    total = math.log(sum(math.exp(score) for score in scores[0].tolist()))
    assert [p for _, p in first.top] == pytest.approx([float(scores[0, i]) - total for i in best], abs=1e-5)
