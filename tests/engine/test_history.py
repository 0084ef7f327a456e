"""What the penalties look at, against dictionaries."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnext.engine.history import History
from qnext.engine.request import Request, SamplingParams

tokens = st.lists(st.integers(0, 400), max_size=40)


def table(ids: Any, times: Any) -> dict[int, float]:
    assert len(ids) == len(times) == len(set(ids.tolist()))
    return dict(zip(ids.tolist(), times.tolist(), strict=True))


@given(tokens, st.lists(st.integers(0, 2000), max_size=400), tokens)
def test_it_counts_the_answer_and_knows_the_prompt(
    prompt: list[int], answer: list[int], drafts: list[int]
) -> None:
    made = History(prompt)
    for token in answer:
        made.add(token)
    now = {token: Counter(answer)[token] for token in {*prompt, *answer}}
    assert table(made.ids, made.times) == now
    then = Counter(answer + drafts)
    assert table(*made.ahead(drafts)) == {token: then[token] for token in {*prompt, *answer, *drafts}}
    assert table(made.ids, made.times) == now  # looking ahead changes nothing
    for token in drafts:
        made.add(token)
    assert table(made.ids, made.times) == table(*made.ahead(()))


def test_it_grows_beyond_what_it_was_made_for() -> None:
    made = History(range(10))
    for token in range(3000):
        made.add(token)
        made.add(token)
    assert table(made.ids, made.times) == {token: 2 for token in range(3000)}


@pytest.mark.parametrize(
    "fields,known",
    [
        ({}, None),
        ({"repetition_penalty": 1.2}, [3, 7]),
        ({"presence_penalty": 1.0}, []),
        ({"frequency_penalty": -1.0}, []),
        ({"frequency_penalty": -1.0, "repetition_penalty": 0.9}, [3, 7]),
    ],
    ids=str,
)
def test_it_is_made_where_a_penalty_asks_for_it(fields: dict[str, Any], known: list[int] | None) -> None:
    made = History.of(Request((7, 3, 7), SamplingParams(**fields)))
    assert (None if made is None else made.ids.tolist()) == known
