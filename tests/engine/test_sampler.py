"""The sampler against a twin that takes one row at a time in plain Python, and against chance itself."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qnext.engine.request import SamplingParams
from qnext.engine.sampler import distribution, draw, logprobs, penalise, sample, uniform

from .rows import sequence
from .twins import chances, chi_square, penalised

NEVER = float("-inf")
VOCABULARY = 40


def random_scores(rows: int, size: int = VOCABULARY, seed: int = 0) -> Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)) * 4


def found_chances(scores: Tensor, wish: SamplingParams) -> dict[int, float]:
    probs, ids = distribution(scores[None], [wish])
    return {i: p for i, p in zip(ids[0].tolist(), probs[0].tolist(), strict=True) if p > 0}


WISHES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3},
    {"temperature": 3.0},
    {"top_k": 1},
    {"top_k": 5},
    {"top_k": 1000},
    {"top_p": 0.9},
    {"top_p": 0.05},
    {"min_p": 0.1},
    {"min_p": 1.0},
    {"temperature": 2.0, "top_k": 10, "top_p": 0.8, "min_p": 0.05},
    {"temperature": 5.0, "top_k": 30, "top_p": 0.97},
    {"temperature": 5.0, "top_p": 0.7, "min_p": 0.2},
]


@pytest.mark.parametrize("fields", WISHES, ids=str)
@pytest.mark.parametrize("forbidden", [0, 7], ids=["all", "some"])
def test_distribution_equals_its_twin(fields: dict[str, Any], forbidden: int) -> None:
    wish = SamplingParams(**fields)
    for seed in range(5):
        scores = random_scores(1, seed=seed)[0]
        scores[:forbidden] = NEVER
        wanted, found = chances(scores.tolist(), wish), found_chances(scores, wish)
        likely = [{i for i, share in each.items() if share > 1e-36} for each in (wanted, found)]
        assert likely[0] == likely[1]
        assert all(share == pytest.approx(wanted[i], abs=1e-6) for i, share in found.items())


@pytest.mark.parametrize("spread", [0.0, 1.0, 8.0])
def test_without_limits_every_token_keeps_its_chance(spread: float) -> None:
    probs, _ = distribution(random_scores(1, 151936) / 4 * spread, [SamplingParams()])
    assert (probs > 0).all()


def test_equal_scores_are_ordered_by_id() -> None:
    assert set(found_chances(torch.zeros(9), SamplingParams(top_k=3))) == {0, 1, 2}


@pytest.mark.parametrize(
    "fields",
    [
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.7},
        {"presence_penalty": 1.5},
        {"frequency_penalty": -0.7},
        {"repetition_penalty": 1.2, "presence_penalty": -1, "frequency_penalty": 0.5},
    ],
    ids=str,
)
def test_penalties_equal_their_twin(fields: dict[str, Any]) -> None:
    made = sequence((3, 3, 8, 1), SamplingParams(**fields), answer=(5, 8, 5, 5, 20))
    scores = random_scores(1)
    scores[0, 8] = NEVER
    before = scores.clone()
    assert penalise(scores, [made])[0].tolist() == pytest.approx(
        penalised(scores[0].tolist(), made), rel=1e-5
    )
    assert scores.equal(before)  # reports are made from the scores as they were


def test_penalties_of_one_row_leave_the_others_alone() -> None:
    rows = [sequence(), sequence((1,), SamplingParams(repetition_penalty=2.0)), sequence()]
    scores = random_scores(3)
    found = penalise(scores, rows)
    assert found[[0, 2]].equal(scores[[0, 2]]) and not found[1].equal(scores[1])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 1e-6, 0.2, 0.7, 1.0, 1.5, 4.0]),
            st.sampled_from([0, 1, 3, 20, 500]),
            st.sampled_from([0.1, 0.55, 0.8, 0.95, 1.0]),
            st.sampled_from([0.0, 0.03, 0.3]),
            st.sampled_from([1.0, 1.2, 0.8]),
            st.sampled_from([0.0, 1.0, -0.5]),
            st.integers(0, 2**63 - 1),
        ),
        min_size=1,
        max_size=6,
    ),
    st.lists(st.integers(0, VOCABULARY - 1), max_size=6),
    st.integers(0, 1000),
)
def test_a_batch_equals_each_row_by_its_twin(
    wishes: list[tuple[Any, ...]], answer: list[int], seed: int
) -> None:
    rows = []
    for t, k, p, m, repetition, presence, row_seed in wishes:
        sampling = SamplingParams(t, p, k, m, repetition, presence, presence / 2, row_seed)
        rows.append(sequence((1, 2, 3), sampling, answer=answer))
    scores = random_scores(len(rows), seed=seed)
    found = sample(scores, rows)
    for row, (made, token) in enumerate(zip(rows, found, strict=True)):
        assert sample(scores[row : row + 1], [made]) == [token]  # nobody's neighbours matter
        wish, plain = made.request.sampling, penalised(scores[row].tolist(), made)
        if wish.temperature == 0:
            assert token == max(range(VOCABULARY), key=lambda i: plain[i])
            continue
        number, spans, at = uniform(made.seed, len(answer)), {}, 0.0
        for i, share in sorted(chances(plain, wish).items(), key=lambda pair: (-pair[1], pair[0])):
            spans[i] = (at, at + share)
            at += share
        assert token in spans
        low, high = spans[token]
        assert low - 1e-5 <= number <= high + 1e-5  # float32 may move an edge by a hair


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
def test_a_tiny_temperature_is_greedy(scores: list[float], temperature: float) -> None:
    wish = SamplingParams(temperature=temperature, top_p=0.9, top_k=3, min_p=0.01)
    for number in (0.0, 0.5, math.nextafter(1.0, 0.0)):
        assert draw(torch.tensor([scores]), [wish], [number]) == [scores.index(max(scores))]


@pytest.mark.parametrize("temperature", [1e5, 1e39, 1e300])
def test_a_huge_temperature_is_even(temperature: float) -> None:
    scores = torch.tensor([5.0, NEVER, -7.0, 0.0])
    found = found_chances(scores, SamplingParams(temperature=temperature))
    assert found == pytest.approx({0: 1 / 3, 2: 1 / 3, 3: 1 / 3}, rel=1e-3)


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
    neighbour = sequence(sampling=SamplingParams(seed=5))
    rows = [sequence((1, 2, 3, 4), SamplingParams(seed=1, **fields)), neighbour]
    tokens = sample(scores, rows)
    assert scores[0, tokens[0]] > NEVER
    assert tokens[1:] == sample(scores[1:], [neighbour])
    logprobs(scores, tokens, rows)


@pytest.mark.parametrize("number", [0.0, 0.25, 1 - 2**-53])
def test_a_draw_stays_on_tokens_that_have_a_chance(number: float) -> None:
    scores = torch.full((1, 50), NEVER)
    scores[0, [7, 30]] = torch.tensor([1.0, 1.0])
    assert draw(scores, [SamplingParams()], [number]) == [30 if number > 0.5 else 7]


@pytest.mark.parametrize("fields", WISHES, ids=str)
def test_draws_follow_the_distribution(fields: dict[str, Any]) -> None:
    wish, count = SamplingParams(**fields), 20_000
    scores = random_scores(1, size=12, seed=3)[0] / 2
    wanted = chances(scores.tolist(), wish)
    tokens = draw(scores.expand(count, -1), [wish] * count, [uniform(11, i) for i in range(count)])
    counts = Counter(tokens)
    assert counts.keys() <= wanted.keys()
    common = [i for i in wanted if wanted[i] * count >= 5]
    rare = [i for i in wanted if i not in common]
    groups = [[i] for i in common] + ([rare] if rare else [])
    observed = [sum(counts[i] for i in group) for group in groups]
    expected = [sum(wanted[i] for i in group) * count for group in groups]
    assert chi_square(observed, expected) > 1e-3


def test_the_chi_square_itself_can_fail() -> None:
    assert chi_square([5200, 4800], [5000, 5000]) < 1e-3 < chi_square([5050, 4950], [5000, 5000])


@pytest.mark.parametrize(
    "numbers",
    [
        [uniform(0, i) for i in range(20_000)],
        [uniform(2**63 - 1, i) for i in range(20_000)],
        [uniform(seed, 0) for seed in range(20_000)],
        [uniform(seed, 77 - seed % 70) for seed in range(20_000)],
        [(uniform(3, i) * 50 + uniform(3, i + 1)) % 1 for i in range(20_000)],
        [(uniform(seed, 4) + uniform(seed + 1, 4)) % 1 for seed in range(20_000)],
    ],
    ids=["draws of 0", "draws of the last seed", "seeds", "seeds and draws", "next draw", "next seed"],
)
def test_uniform_numbers_are_uniform(numbers: list[float]) -> None:
    assert all(0 <= number < 1 for number in numbers)
    cells = Counter(int(number * 64) for number in numbers)
    assert chi_square([cells[i] for i in range(64)], [len(numbers) / 64] * 64) > 1e-3
    assert len(set(numbers)) > 19_990


def test_the_number_depends_on_the_position_alone() -> None:
    """A sequence that is computed anew draws the same tokens again."""
    scores, wish = random_scores(1), SamplingParams(seed=9, temperature=3.0)
    tokens = [sample(scores, [sequence((1,), wish, answer=[4] * n)])[0] for n in range(30)]
    assert tokens == [sample(scores, [sequence((7, 7, 7), wish, answer=[6] * n)])[0] for n in range(30)]
    assert len(set(tokens)) > 5
    other = SamplingParams(seed=10, temperature=3.0)
    assert tokens != [sample(scores, [sequence((1,), other, answer=[4] * n)])[0] for n in range(30)]


def test_logprobs_are_the_models_own() -> None:
    """Before penalties and temperature, so that they can be compared between requests."""
    scores = random_scores(3)
    wishes = [SamplingParams(temperature=0.1, logprobs=3, presence_penalty=2.0), SamplingParams()]
    wishes.append(SamplingParams(logprobs=0))
    rows = [sequence(sampling=wish, answer=(2,)) for wish in wishes]
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
