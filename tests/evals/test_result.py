"""Results: intervals as the textbooks have them, and verdicts that look at the value."""

from __future__ import annotations

import json
import math
from random import Random

import pytest

from qnext.evals.report import HEAD, json_line, line
from qnext.evals.result import loss, rate, wilson


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [
        (90, 100, 0.8256, 0.9448),
        (0, 20, 0.0, 0.1611),
        (20, 20, 0.8389, 1.0),
        (1, 2, 0.0945, 0.9055),
        (0, 0, 0, 1),
    ],
)
def test_wilson(right: int, count: int, low: float, high: float) -> None:
    assert wilson(right, count) == pytest.approx((low, high), abs=1e-4)


def test_the_interval_of_a_rate_covers_as_often_as_it_says() -> None:
    for true in (0.05, 0.5, 0.9):
        random, covered = Random(1), 0
        for _ in range(2000):
            low, high = wilson(sum(random.random() < true for _ in range(60)), 60)
            covered += low <= true <= high
        assert 0.92 < covered / 2000 < 0.98


def test_the_interval_of_a_loss_covers_as_often_as_it_says() -> None:
    """Texts of many lengths, each with a level of its own, around 2 nats a token."""
    random, covered = Random(2), 0
    for _ in range(1000):
        scores = []
        for _ in range(60):
            count = random.randint(20, 300)
            scores.append((count * random.gauss(2, 0.3), count))
        found = loss("loss", scores, 2.2, 0)
        covered += found.low <= 2 <= found.high
    assert 0.91 < covered / 1000 < 0.98


def test_a_loss_is_nats_over_tokens() -> None:
    found = loss("loss", [(30.0, 10), (10.0, 10)], 2.2, 3)
    assert found.value == 2.0 and found.passed and found.low < 2 < found.high and found.count == 2
    assert not loss("loss", [(30.0, 10), (10.0, 10)], 1.9, 3).passed


def test_a_verdict_is_about_the_value() -> None:
    assert rate("gate", 9, 10, 0.9, 0).passed
    assert not rate("gate", 89, 100, 0.9, 0).passed
    assert not rate("gate", 0, 0, 0.0, 0).passed, "what was never tried is not passed"


def test_both_reports_show_the_same() -> None:
    found = rate("right tool", 3, 4, 0.9, 7, "one wrong")
    text = line("tiny", found)
    assert text.split()[:4] == ["tiny", "right", "tool", "75.0%"]
    assert text.endswith("MISSED  (one wrong)") and "30.1% to 95.4%" in text
    assert text.index("MISSED") == HEAD.index("verdict")
    row = json.loads(json_line("tiny", found))
    assert row["value"] == 0.75 and row["passed"] is False and row["seed"] == 7 and row["count"] == 4
    assert json.loads(json_line("tiny", loss("loss", [(2.0, 1)], 3.0, 0)))["low"] is None
    assert math.isinf(loss("loss", [(2.0, 1)], 3.0, 0).high)
