from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnext.text.stops import StopMatcher

WORDS = st.text("ab", min_size=2, max_size=5)


def naive(text: str, stops: list[str]) -> tuple[str, bool]:
    """Read character by character, and look at the end each time."""
    for end in range(len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], True
    return text, False


@settings(deadline=None, max_examples=300)
@given(pieces=st.lists(st.text("aab", max_size=6), max_size=8), stops=st.lists(WORDS, max_size=3))
def test_equals_reading_character_by_character(pieces: list[str], stops: list[str]) -> None:
    matcher = StopMatcher(stops)
    released = ""
    for i, piece in enumerate(pieces):
        released += matcher.feed(piece)
        if not matcher.matched:
            seen = "".join(pieces[: i + 1])
            held = seen[len(released) :]
            assert seen.startswith(released)
            assert held == "" or any(stop.startswith(held) for stop in stops), "held back without need"
            longer = [seen[-n:] for n in range(len(held) + 1, len(seen) + 1)]
            assert not any(stop.startswith(end) for stop in stops for end in longer), "released too early"
    text, matched = naive("".join(pieces), stops)
    assert (released + matcher.flush(), matcher.matched) == (text, matched)


def test_a_stop_that_begins_within_a_failed_one_is_found() -> None:
    matcher = StopMatcher(["aab"])
    assert matcher.feed("aaa") + matcher.feed("b") == "a" and matcher.matched


def test_nothing_comes_after_a_match() -> None:
    matcher = StopMatcher(["b"])
    assert matcher.feed("abc") == "a" and matcher.matched
    assert matcher.feed("d") == "" and matcher.flush() == ""


def test_flush_forgets_the_beginning_of_a_stop() -> None:
    matcher = StopMatcher(["ab"])
    assert matcher.feed("xa") == "x" and matcher.flush() == "a"
    assert matcher.feed("b") == "b" and not matcher.matched


def test_an_empty_stop_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopMatcher(["a", ""])
