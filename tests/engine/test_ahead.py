"""Looking ahead along a grammar takes nothing in for good."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnext.engine.ahead import Ahead, rows_after
from qnext.engine.plan import Piece
from qnext.engine.request import Reasoning, Request, SamplingParams
from qnext.engine.sequence import Sequence
from qnext.engine.stream import Stream

from .grammars import Counting

END = Counting.END


def bound(
    answer: tuple[int, ...] = (),
    *,
    fails_at: int | None = None,
    most: int = 100,
    reasoning: int | None = None,
) -> tuple[Sequence, Counting]:
    """A sequence whose answer must count, and the matcher that follows it."""
    request = Request(
        (5, 5),
        SamplingParams(max_tokens=most),
        grammar=Counting(fails_at),
        reasoning=None if reasoning is None else Reasoning(reasoning, (reasoning,)),
    )
    made = Sequence(Stream(request, lambda stream: None), 0, 1000)
    for token in answer:
        made.extend(token, None)
    assert isinstance(made.matcher, Counting)
    return made, made.matcher


def ids(allowed: np.ndarray | None) -> list[int] | None:
    return None if allowed is None else np.flatnonzero(allowed).tolist()


def rows(made: Sequence, drafts: tuple[int, ...]) -> Iterator[list[int] | None]:
    made.computed = len(made.tokens) - 1
    for j, row in enumerate(rows_after(Piece(made, 1, drafts))):
        assert row.sequence is made and row.ahead == drafts[:j]
        yield ids(row.allowed)


def test_each_row_is_bound_by_the_drafts_before_it() -> None:
    made, matcher = bound((0, 1))
    assert list(rows(made, (2, 3))) == [[2, END], [3, END], [4, END]]
    assert matcher.taken == [0, 1]


def test_after_a_draft_that_may_not_be_nothing_is_known() -> None:
    made, matcher = bound((0, 1))
    assert list(rows(made, (2, 50, 4))) == [[2, END], [3, END], None, None]
    assert matcher.taken == [0, 1]


def test_without_a_grammar_everything_may_come() -> None:
    made = Sequence(Stream(Request((5, 5)), lambda stream: None), 0, 1000)
    assert list(rows(made, (2, 3))) == [None] * 3


def test_the_room_shrinks_along_the_drafts() -> None:
    made, matcher = bound((0, 1), most=4)
    assert list(rows(made, (2, 3))) == [[2, END], [END], None]
    made, matcher = bound((0, 1), most=4)
    assert list(rows(made, (2, END))) == [[2, END], [END], [END]]
    assert matcher.rooms == [2, 1, 1]


def test_the_grammar_holds_from_the_end_of_the_reasoning_on() -> None:
    made, matcher = bound((7, 7), reasoning=50)
    assert list(rows(made, (8, 50, 0, 1))) == [None, None, [0, END], [1, END], [2, END]]
    assert matcher.taken == []
    made.extend(50, None)
    made.extend(0, None)
    assert list(rows(made, (50, 1))) == [[1, END], None, None]  # by now it is a token like others


def test_a_grammar_that_fails_ends_the_rows_before_it() -> None:
    made, matcher = bound((0, 1), fails_at=4)
    assert list(rows(made, (2, 3, 4))) == [[2, END], [3, END]]
    assert matcher.taken == [0, 1]
    made, matcher = bound((0, 1), fails_at=2)
    with pytest.raises(RuntimeError, match="meets its limits"):
        list(rows(made, (2, 3)))
    assert matcher.taken == [0, 1]


def test_guesses_go_on_where_a_grammar_fails() -> None:
    made, matcher = bound((0, 1), fails_at=3)
    look = Ahead(made)
    allowed = look.allowed()
    look.take(2, allowed)
    assert ids(allowed) == [2, END] and look.error is None
    assert look.allowed() is None and isinstance(look.error, RuntimeError)
    look.take(77, None)
    assert look.allowed() is None
    assert matcher.taken == [0, 1]


@given(st.integers(0, 5), st.lists(st.sampled_from([0, 1, 2, 3, 4, 5, 6, 7, END]), max_size=6))
def test_rows_say_what_a_fresh_grammar_would_say(count: int, drafts: list[int]) -> None:
    made, matcher = bound(tuple(range(count)))
    found = list(rows(made, tuple(drafts)))
    for j, allowed in enumerate(found):
        fresh, fine = Counting(), True
        for token in (*range(count), *drafts[:j]):
            fine = fine and bool(fresh.allowed(100)[token])
            if fine:
                fresh.accept(token)
        assert allowed == (ids(fresh.allowed(100)) if fine else None)
    assert matcher.taken == list(range(count))
