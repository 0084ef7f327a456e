"""Long texts, piece by piece."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnext.client import chain, pieces


@given(st.text(alphabet="ab .\n。", max_size=300), st.integers(1, 40))
def test_no_character_is_lost_and_no_piece_too_long(text: str, size: int) -> None:
    found = list(pieces(text, size))
    assert "".join(found) == text and all(1 <= len(piece) <= size for piece in found)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("one two.\n\nthree\nfour five six", "one two.\n\n"),
        ("one two three.\nfour five six", "one two three.\n"),
        ("I am. You are. He is there", "I am. You are. "),
        ("一二三四五六七。八九十一二三四五六七", "一二三四五六七。"),
        ("wordword word wordword", "wordword word "),
        ("x" * 30, "x" * 15),
        ("a. " + "x" * 30, "a. " + "x" * 12),  # an end that early would make a piece of almost nothing
    ],
)
def test_cut_where_something_ends(text: str, first: str) -> None:
    assert next(pieces(text, 15)) == first


def test_each_call_knows_the_answer_before() -> None:
    asked: list[str] = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return f"notes {len(asked)}"

    assert chain(ask, "alpha beta gamma delta", "Sum up.", size=12) == "notes 2"
    assert all(prompt.startswith("Sum up.") for prompt in asked)
    assert "part 1 of 2" in asked[0] and "alpha beta" in asked[0] and "notes" not in asked[0]
    assert "part 2 of 2" in asked[1] and "gamma delta" in asked[1] and "notes 1" in asked[1]


def test_braces_in_texts_are_text() -> None:
    assert (
        chain(lambda prompt: prompt, "{x}", "{task}") == "{task}\n\nThis is part 1 of 1 of the text:\n\n{x}"
    )


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="text is empty"):
        chain(str, "", "Sum up.")
    with pytest.raises(ValueError, match="size is 0"):
        list(pieces("x", 0))
