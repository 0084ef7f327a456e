"""Arithmetic: worked thoughts and answers are right."""

from __future__ import annotations

import re
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnext.synthetic import arithmetic
from qnext.synthetic.dialogue import Setting

STEP = re.compile(r"(?<![\d+x-] )(?<!\d)(\d+(?: [-+x] \d+)+) = (-?\d+)")


def assert_steps_right(thought: str) -> None:
    for left, right in STEP.findall(thought):
        assert eval(left.replace("x", "*")) == int(right), thought


@given(a=st.integers(0, 999), b=st.integers(0, 999))
@settings(deadline=None, max_examples=150)
def test_sums_and_differences(a: int, b: int) -> None:
    for kind, wanted in (("plus", a + b), ("minus", a - b)):
        thought, result = arithmetic.work(kind, a, b)
        assert result == wanted and str(abs(result)) in thought
        assert_steps_right(thought)


@given(a=st.integers(2, 99), b=st.integers(2, 10))
@settings(deadline=None, max_examples=100)
def test_products(a: int, b: int) -> None:
    thought, result = arithmetic.work("times", a, b)
    assert result == a * b and str(result) in thought
    assert_steps_right(thought)


def test_carry_and_borrow_are_written_out() -> None:
    assert arithmetic.work("plus", 58, 67) == (
        "I add from the right. 8 + 7 = 15, write 5, carry 1. 5 + 6 + 1 = 12, write 2, carry 1. "
        "Write the carried 1. The sum is 125.",
        125,
    )
    assert "12 - 7 = 5, borrow 1" in arithmetic.work("minus", 62, 27)[0]


@pytest.mark.parametrize("thinking", [True, False])
def test_plain_problems_are_right_and_of_their_size(thinking: bool) -> None:
    for seed in range(300):
        dialogue = arithmetic.plain(Random(seed), Setting(thinking=thinking))
        question, answer = (message.content for message in dialogue.messages)
        assert dialogue.must[0] in answer
        numbers = [int(number) for number in re.findall(r"\d+", question)]
        assert len(numbers) == 2 and max(numbers) < (1000 if thinking else 100)


def test_held_out_pairs_are_never_trained() -> None:
    def pairs(heldout: bool) -> set[tuple[int, int]]:
        return {arithmetic._numbers(Random(seed), "plus", Setting(heldout)) for seed in range(400)}

    assert not pairs(True) & pairs(False)


def test_sums_of_two_digits() -> None:
    for heldout in (False, True):
        for seed in range(200):
            dialogue = arithmetic.two_digit_sum(Random(seed), Setting(heldout))
            question, answer = (message.content for message in dialogue.messages)
            a, b = map(int, re.findall(r"\d+", question))
            assert 10 <= a <= 99 and 10 <= b <= 99 and arithmetic._kept_back(a, b) == heldout
            assert answer == f"{a} + {b} = {a + b}." and dialogue.must == (str(a + b),)


def test_problems_name_two_people_at_most_and_end_in_the_result() -> None:
    for seed in range(200):
        dialogue = arithmetic.problem(Random(seed), Setting(heldout=seed % 3 == 0))
        assert dialogue.must[0] in dialogue.messages[-1].content
        assert "how many" in dialogue.messages[0].content.lower()
