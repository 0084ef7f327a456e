"""Copying: lists, calls and repetitions hold what was said, and only lists hold what is kept back."""

from __future__ import annotations

import json
from random import Random

from qnext.synthetic import copying
from qnext.synthetic.coinage import borrowed, common, said
from qnext.synthetic.dialogue import Setting
from qnext.synthetic.slots import table, words

SEEDS = range(300)


def test_a_list_holds_what_was_said_in_order() -> None:
    seen: set[str] = set()
    for seed in SEEDS:
        dialogue = copying.as_list(Random(seed), Setting())
        question, answer = (message.content for message in dialogue.messages)
        values = json.loads(answer)
        assert 4 <= len(values) <= 28
        at = 0
        for value in values:
            at = question.index(value, at) + len(value)
        seen |= {value.lower() for value in values}
    assert {"silver", "garden"} <= set(common()) and "silver" not in borrowed()
    assert seen & (set(common()) - set(borrowed()))


def test_spelling_lists_words_alone() -> None:
    known = {word.lower() for word in common()}
    for seed in SEEDS:
        dialogue = copying.spelling(Random(seed), Setting())
        question, answer = (message.content for message in dialogue.messages)
        values = json.loads(answer)
        assert 16 <= len(values) <= 40 and all(value.isalpha() for value in values)
        assert len({value.lower() for value in values} & known) >= len(values) // 3
        assert all(value in question for value in values)


def test_what_stories_say_is_copied_unless_it_holds_what_is_kept_back() -> None:
    stories = ("Then she found a silver box, but the old dragon was asleep.", "They met at noon.")
    runs = {said(Random(seed), stories) for seed in SEEDS}
    assert any("dragon" in run for run in runs)
    assert not any("silver" in run or "noon" in run for run in runs)
    assert said(Random(0), ()) == ""


def test_two_values_are_two_calls() -> None:
    for seed in SEEDS:
        calls = copying.twice(Random(seed), Setting()).messages[-1].tool_calls
        assert len(calls) == 2 and calls[0].name == calls[1].name


def test_a_call_holds_many_arguments_and_none_that_is_kept_back() -> None:
    kept, shared = (
        {v.lower() for slot in table("words")["slots"] for v in words(slot, h)} for h in (True, False)
    )
    for seed in SEEDS:
        dialogue = copying.with_many(Random(seed), Setting())
        (call,) = dialogue.messages[-1].tool_calls
        values = [str(value) for value in json.loads(call.arguments).values()]
        assert 3 <= len(values) <= 7
        said = dialogue.messages[0].content.lower()
        assert all(value.lower() in said for value in values)
        plain = {value.lower() for value in values if value.replace(" ", "").isalpha()}  # no dates or times
        assert not (plain & kept) - shared


def test_the_same_is_said_again() -> None:
    for seed in SEEDS:
        dialogue = copying.again(Random(seed), Setting())
        assert dialogue.messages[-1].content in dialogue.messages[0].content
