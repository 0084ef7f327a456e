"""What the benchmark of guesses makes of noisy rounds."""

from __future__ import annotations

from random import Random
from statistics import mean

import pytest

from benchmarks.speculation import KINDS, apart


@pytest.mark.parametrize("speed", [1.0, 0.95])
def test_luck_of_the_best_fixed_number_does_not_count(speed: float) -> None:
    random = Random(0)
    found = []
    for _ in range(300):
        rounds = {name: [random.gauss(100, 8) for _ in range(12)] for name in KINDS}
        rounds["adaptive"] = [speed * rate for rate in rounds["adaptive"]]
        found.append(apart(rounds))
    assert mean(found) == pytest.approx(speed, abs=0.01)


def test_the_best_fixed_number_is_what_counts() -> None:
    rounds = {name: [100.0] * 12 for name in KINDS} | {"2": [125.0] * 12}
    assert apart(rounds) == pytest.approx(0.8)
