"""What the benchmark of guesses makes of noisy turns."""

from __future__ import annotations

from random import Random
from statistics import mean

import pytest

from benchmarks.speculation import KINDS, Turn, apart, requests, still_playing, within
from qnext.models import locate
from qnext.text.chat import Chat

Rounds = dict[str, list[Turn]]


def rounds(random: Random, count: int, speeds: dict[str, float]) -> Rounds:
    """Turns of 100 tokens on a machine that is up to twice as slow in some rounds, and scatters in each."""
    slow = [random.uniform(1, 2) for _ in range(count)]
    return {
        name: [(100, each * random.uniform(0.8, 1.2) / speeds.get(name, 1.0)) for each in slow]
        for name in KINDS
    }


@pytest.mark.parametrize("speed", [1.0, 0.95])
def test_luck_of_the_best_fixed_number_does_not_count(speed: float) -> None:
    random = Random(0)
    found = [apart(rounds(random, 60, {"adaptive": speed})) for _ in range(100)]
    assert mean(found) == pytest.approx(speed, abs=0.01)


def test_the_best_fixed_number_is_what_counts() -> None:
    found = {name: [(100, 1.0)] * 12 for name in KINDS} | {"2": [(125, 1.0)] * 12}
    assert apart(found) == pytest.approx(0.8)


def test_who_is_far_behind_plays_no_more_and_is_not_the_best() -> None:
    turns = {"0": (100, 1.0), "1": (95, 1.0), "2": (90, 1.0), "3": (200, 4.0), "adaptive": (80, 1.0)}
    found = {name: [turn] * 12 for name, turn in turns.items()}
    playing = still_playing(found)
    assert playing == ["0", "1", "adaptive"]
    found |= {name: found[name] * 2 for name in playing}
    assert apart(found) == pytest.approx(0.8) and within(found, draws=20) == pytest.approx((0.8, 0.8))


def test_nine_of_ten_resamplings_lie_round_the_figure() -> None:
    found = rounds(Random(1), 100, {})
    low, high = within(found, draws=100)
    assert low < apart(found) < high and 0.01 < high - low < 0.08


def test_prompts_differ() -> None:
    found = requests(Chat.from_pretrained(locate("tiny-instruct")), 8)
    assert len({request.prompt for request in found}) == 8
