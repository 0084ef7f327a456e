"""The sampler's draws against a twin that takes one row at a time in plain Python, and against chance."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qnext.engine.request import SamplingParams
from qnext.engine.sampler import Row, draw, sample, table
from qnext.kernels.reference import drawing

from .rows import sequence
from .twins import chances, chi_square, dice, penalised, race

NEVER = float("-inf")
VOCABULARY = 40


def random_scores(rows: int, size: int = VOCABULARY, seed: int = 0) -> Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)) * 4


def tied(scores: Tensor) -> Tensor:
    """As from a network in bfloat16, and coarser still: many are equal."""
    return (scores / 2).round().bfloat16().float()


def die(wish: SamplingParams, seed: int, place: int = 0) -> Row:
    """A row without a whole sequence."""
    made: Any = SimpleNamespace(
        seed=seed, generated=place, history=None, request=SimpleNamespace(sampling=wish)
    )
    return Row(made)


def found_chances(scores: Tensor, wish: SamplingParams, width: int | None = None) -> dict[int, float] | None:
    """None: so many of the likeliest are not enough to tell."""
    wishes = table([die(wish, 0)], len(scores))
    shares, ids, enough = drawing.distribution(scores[None], wishes, width or len(scores))
    assert shares.sum() == pytest.approx(1, abs=1e-5)
    if not enough:
        return None
    return {i: p for i, p in zip(ids[0].tolist(), shares[0].tolist(), strict=True) if p > 0}


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
@pytest.mark.parametrize("ties", [False, True])
def test_distribution_equals_its_twin(fields: dict[str, Any], forbidden: int, ties: bool) -> None:
    wish = SamplingParams(**fields)
    for seed in range(5):
        scores = random_scores(1, seed=seed)[0]
        scores = tied(scores) if ties else scores
        scores[:forbidden] = NEVER
        wanted, found = chances(scores.tolist(), wish), found_chances(scores, wish)
        assert found is not None
        likely = [{i for i, share in each.items() if share > 1e-36} for each in (wanted, found)]
        assert likely[0] == likely[1]
        assert all(share == pytest.approx(wanted[i], abs=1e-6) for i, share in found.items())


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("width", [1, 2, 5, 11, 39])
def test_what_is_said_to_be_enough_is_enough(width: int, ties: bool) -> None:
    told: list[bool] = []
    for fields in WISHES:
        for seed in range(5):
            scores, wish = random_scores(1, seed=seed)[0], SamplingParams(**fields)
            scores = tied(scores) if ties else scores
            found = found_chances(scores, wish, width)
            told.append(found is not None)
            if found is not None:
                wanted = chances(scores.tolist(), wish)
                assert {i for i in wanted if wanted[i] > 1e-36} == set(found)
                assert found == pytest.approx({i: wanted[i] for i in found}, abs=1e-6)
    assert not all(told) and (width < 3 or any(told))


@pytest.mark.parametrize("size", [2048, 2055, 4096])
@pytest.mark.parametrize("allowed", [None, 3, 500])
def test_the_best_of_many_are_found_in_groups(size: int, allowed: int | None) -> None:
    """Where tokens are compared in groups first, the distribution is that of all tokens in their order."""
    for seed, ties in ((0, False), (1, True), (2, True)):
        scores = random_scores(1, size, seed)[0]
        scores = tied(scores) if ties else scores
        if allowed is not None:
            scores[torch.randperm(size, generator=torch.Generator().manual_seed(seed))[allowed:]] = NEVER
        for fields in ({"top_k": 8}, {"temperature": 0.5, "top_p": 0.5}, {"temperature": 0.5, "min_p": 0.3}):
            wish = SamplingParams(**fields)  # type: ignore[arg-type]
            found = found_chances(scores, wish, 32)
            assert found is None or found == pytest.approx(found_chances(scores, wish), abs=1e-6)
            assert found is not None or ties


@pytest.mark.parametrize(
    "fields,width,enough",
    [
        ({"top_k": 4}, 5, True),
        ({"top_k": 5}, 5, False),
        ({"top_k": 6}, 5, False),
        ({"top_p": 0.5}, 5, True),
        ({"top_p": 0.9999}, 5, False),
        ({"min_p": 0.5}, 5, True),
        ({"min_p": 1e-9}, 5, False),
        ({}, 39, False),
        ({}, 40, True),
    ],
    ids=str,
)
def test_how_many_are_enough(fields: dict[str, Any], width: int, enough: bool) -> None:
    scores = torch.arange(40.0) / 2
    assert (found_chances(scores, SamplingParams(**fields), width) is not None) == enough


@pytest.mark.parametrize("spread", [0.0, 1.0, 8.0])
def test_without_limits_every_token_keeps_its_chance(spread: float) -> None:
    found = found_chances(random_scores(1, 151936)[0] / 4 * spread, SamplingParams())
    assert found is not None and len(found) == 151936


@pytest.mark.parametrize("size", [9, 3000])
def test_of_equal_scores_lower_ids_come_first(size: int) -> None:
    assert set(found_chances(torch.zeros(size), SamplingParams(top_k=3)) or ()) == {0, 1, 2}
    tokens = draw(torch.zeros(200, size), [die(SamplingParams(top_k=3), seed) for seed in range(200)])
    assert set(tokens) == {0, 1, 2}


@pytest.mark.parametrize("ties", [False, True])
def test_how_many_are_looked_at_changes_no_draw(ties: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [die(SamplingParams(**fields), seed) for seed in range(40) for fields in WISHES]
    scores = random_scores(len(rows), 300, seed=1)
    scores = tied(scores) if ties else scores
    found = [draw(scores, rows)]  # by the kernels
    monkeypatch.setenv("QNEXT_KERNELS", "reference")
    for widths in ((), (1,), (2, 3, 5, 9), (32, 128)):
        monkeypatch.setattr(drawing, "WIDTHS", widths)
        monkeypatch.setattr(drawing, "LIKELY", 1)
        found.append(draw(scores, rows))
    assert all(each == found[0] for each in found)


wishes = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0, 1e-6, 0.2, 0.7, 1.0, 1.5, 4.0]),
    top_k=st.sampled_from([0, 1, 3, 20, 500]),
    top_p=st.sampled_from([0.1, 0.55, 0.8, 0.95, 1.0]),
    min_p=st.sampled_from([0.0, 0.03, 0.3]),
    repetition_penalty=st.sampled_from([1.0, 1.2, 0.8]),
    presence_penalty=st.sampled_from([0.0, 1.0, -0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.5, -0.25]),
    seed=st.integers(0, 2**63 - 1),
)
answers = st.lists(st.integers(0, VOCABULARY - 1), max_size=6)


@settings(deadline=None, max_examples=100)
@given(st.lists(wishes, min_size=1, max_size=6), answers, st.integers(0, 1000), st.booleans())
def test_a_batch_equals_each_row_by_its_twin(
    wishes: list[SamplingParams], answer: list[int], seed: int, ties: bool
) -> None:
    rows = [Row(sequence((1, 2, 3), wish, answer=answer)) for wish in wishes]
    scores = random_scores(len(rows), seed=seed)
    scores = tied(scores) if ties else scores
    for n, (row, token) in enumerate(zip(rows, sample(scores, rows), strict=True)):
        assert sample(scores[n : n + 1], [row]) == [token]  # nobody's neighbours matter
        wish, plain = row.wish, penalised(scores[n].tolist(), row.sequence)
        if wish.temperature == 0:
            assert plain[token] == pytest.approx(max(plain), rel=1e-6)
            continue
        order = race(chances(plain, wish), row.sequence.seed, len(answer))
        if token != order[0]:  # float32 may move an edge by a hair
            near = plain.copy()
            near[token] += 2e-6 * max(1, abs(near[token]))
            assert token == race(chances(near, wish), row.sequence.seed, len(answer))[0]


@pytest.mark.parametrize("fields", WISHES, ids=str)
@pytest.mark.parametrize("ties", [False, True])
def test_draws_follow_the_distribution(fields: dict[str, Any], ties: bool) -> None:
    wish, count = SamplingParams(**fields), 8_000
    scores = random_scores(1, size=12, seed=3)[0] / 2
    scores = tied(scores) if ties else scores
    wanted = chances(scores.tolist(), wish)
    rows = [die(wish, 11 + i % 100, i // 100) for i in range(count)]
    counts = Counter(draw(scores.expand(count, -1), rows))
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
        [dice(0, place, 5) for place in range(20_000)],
        [dice(2**63 - 1, place, 0) for place in range(20_000)],
        [dice(seed, 0, 0) for seed in range(20_000)],
        [dice(7, 7, token) for token in range(20_000)],
        [dice(seed, 77 - seed % 70, 3) for seed in range(20_000)],
        [(dice(3, i, 1) * 50 + dice(3, i + 1, 1)) % 1 for i in range(20_000)],
        [(dice(3, 9, i) * 50 + dice(3, 9, i + 1)) % 1 for i in range(20_000)],
        [(dice(3, i, 7) - dice(3, i + 1, 6)) % 1 for i in range(20_000)],
        [(dice(seed, 4, 2) + dice(seed + 1, 4, 2)) % 1 for seed in range(20_000)],
    ],
    ids=[
        "places",
        "last seed",
        "seeds",
        "tokens",
        "mixed",
        "next place",
        "next token",
        "diagonal",
        "next seed",
    ],
)
def test_the_dice_are_fair(numbers: list[float]) -> None:
    assert all(0 < number < 1 for number in numbers)
    cells = Counter(int(number * 64) for number in numbers)
    assert chi_square([cells[i] for i in range(64)], [len(numbers) / 64] * 64) > 1e-3
    assert len(set(numbers)) > 19_990


@pytest.mark.parametrize("bits", [-1, 0])
def test_no_number_of_the_dice_lets_the_forbidden_win(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QNEXT_KERNELS", "reference")
    monkeypatch.setattr(drawing, "_hash", lambda z: torch.full_like(z, bits))
    scores = torch.tensor([[NEVER, 0.0, NEVER]])
    assert draw(scores, [die(SamplingParams(), 1)]) == [1]
    assert draw(scores, [die(SamplingParams(top_k=2), 1)]) == [1]


def test_the_dice_depend_on_the_position_alone() -> None:
    """A sequence that is computed anew draws the same tokens again, and a guess is drawn like the answer."""
    scores, wish = random_scores(1), SamplingParams(seed=9, temperature=3.0)
    tokens = [sample(scores, [Row(sequence((1,), wish, answer=[4] * n))])[0] for n in range(30)]
    assert tokens == [sample(scores, [Row(sequence((7, 7), wish, answer=[6] * n))])[0] for n in range(30)]
    for ahead in range(9):
        rows = [Row(sequence((1,), wish, answer=[4] * (n - ahead)), (2,) * ahead) for n in range(ahead, 30)]
        assert sample(scores.expand(len(rows), -1), rows) == tokens[ahead:]
    assert len(set(tokens)) > 5
    other = SamplingParams(seed=10, temperature=3.0)
    assert tokens != [sample(scores, [Row(sequence((1,), other, answer=[4] * n))])[0] for n in range(30)]
