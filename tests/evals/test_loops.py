"""Loops: what goes round in circles is found, what merely comes back is not."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnext.evals.loops import GRAM, loops, most_repeated


def slowly(text: str) -> bool:
    """The definition, tried at every place and distance."""
    words = text.lower().split()
    for start in range(len(words)):
        for period in range(1, len(words)):
            stretch = words[start : start + 2 * period + GRAM]
            if len(stretch) == 2 * period + GRAM and all(
                stretch[i] == stretch[i + period] for i in range(len(stretch) - period)
            ):
                return True
    return False


@given(st.lists(st.sampled_from("abc"), max_size=24))
@settings(deadline=None, max_examples=400)
def test_equals_the_definition(words: list[str]) -> None:
    assert loops(" ".join(words)) == slowly(" ".join(words))


@given(st.lists(st.sampled_from("abcdefgh"), min_size=4, max_size=9), st.integers(0, 6))
@settings(deadline=None)
def test_what_is_said_three_times_in_a_row_is_a_loop(said: list[str], before: int) -> None:
    text = " ".join([f"w{i}" for i in range(before)] + said * 3)
    assert loops(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("The cat ran and the cat ran and the cat ran and the cat", True),
        ("very very very very very very", True),
        ("very very very good", False),
        ("He saw a big red ball. It was his. She saw a big red ball. They ran. I saw a big red ball.", False),
        ("", False),
    ],
)
def test_examples(text: str, found: bool) -> None:
    assert loops(text) == found


def test_most_repeated() -> None:
    assert most_repeated("a big red ball . a big red ball . b a big red ball") == 3
    assert most_repeated("too short") == 0
