"""Dialogue, slots and chat: what every family keeps to, and the checker that evaluations use."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest

from qnext.synthetic.chat import DRILLS, FAMILIES, compose
from qnext.synthetic.dialogue import Dialogue, Setting, ask, check, contains
from qnext.synthetic.slots import article, draw, fill, listing, request, share, table, vary, words
from qnext.text.messages import ToolCall

STORIES = (
    "Once upon a time, there was a little dog named Rex. Rex liked to run in the park.\n\nOne day, he found "
    'a ball. He was happy. "Look!" he said. The end.',
    "Lily saw a bird in the garden. The bird sang a song. Lily smiled and went home.",
)
SETTINGS = [Setting(heldout, thinking, STORIES) for heldout in (False, True) for thinking in (False, True)]


@pytest.mark.parametrize("family", [*FAMILIES, *DRILLS])
def test_a_family_keeps_the_contract(family: str) -> None:
    for number in range(150):
        for setting in SETTINGS:
            make = DRILLS.get(family) or FAMILIES[family][0]
            dialogue = make(Random(number), setting)
            roles = [message.role for message in dialogue.messages]
            assert roles[0] == "user" and roles[-1] == "assistant"
            assert all(one != other for one, other in pairwise(roles))
            for message in dialogue.messages:
                assert message.content or message.tool_calls
                assert (message.role == "assistant") == bool(message.reasoning)
                assert message.content == message.content.strip()
                if message.role != "tool":
                    assert not re.search(r"\{[A-Za-z_:0-9]*\}", message.content + (message.reasoning or ""))
            last = dialogue.messages[-1]
            assert not dialogue.checkable or check(dialogue, last.content, last.tool_calls)


def test_the_same_random_gives_the_same_conversation() -> None:
    assert compose(Random(4), SETTINGS[0]) == compose(Random(4), SETTINGS[0])


def test_conversations_chain_and_vary() -> None:
    made = [compose(Random(number), Setting()) for number in range(600)]
    turns = Counter(sum(message.role == "user" for message in dialogue.messages) for dialogue in made)
    assert set(turns) >= {1, 2, 3, 4}
    firsts = {next(m.content for m in dialogue.messages if m.role == "user") for dialogue in made}
    assert len(firsts) > 450
    systems = sum(dialogue.messages[0].role == "system" for dialogue in made)
    assert 80 < systems < 250


def test_half_of_the_conversations_with_tools_call_none() -> None:
    made = [dialogue for number in range(1500) if (dialogue := compose(Random(number), Setting())).tools]
    calling = sum(any(message.tool_calls for message in dialogue.messages) for dialogue in made)
    assert 0.35 < calling / len(made) < 0.65


def test_check_compares_calls_and_words() -> None:
    call = ToolCall("a", "get_weather", '{"city": "Paris", "n": 2}')
    calling = replace(
        ask("?", "", "t"), messages=(replace(ask("?", "x", "t").messages[1], tool_calls=(call,)),)
    )
    assert check(calling, "", [ToolCall("other", "get_weather", '{"n": 2, "city": "Paris"}')])
    assert not check(calling, "", [ToolCall("a", "get_weather", '{"city": "Rome", "n": 2}')])
    assert not check(calling, "", [ToolCall("a", "get_weather", "{city")])
    assert not check(calling, "", [])
    saying = ask("?", "Paris.", "t", ["Paris"])
    assert (
        check(saying, "It is paris!", [])
        and not check(saying, "Parisian", [])
        and not check(saying, "Paris", [call])
    )


@pytest.mark.parametrize(
    ("answer", "found"), [("It is 12.", True), ("112", False), ("12.5", False), ("x = 12", True)]
)
def test_numbers_are_found_whole(answer: str, found: bool) -> None:
    assert contains(answer, "12") == found


def test_dialogues_without_words_to_find_are_not_checkable() -> None:
    assert not ask("?", "Hello!", "t").checkable and isinstance(ask("?", "x", "t"), Dialogue)


@pytest.mark.parametrize("slot", table("words")["slots"])
def test_training_and_held_out_words_are_disjoint(slot: str) -> None:
    everything = words(slot)
    assert len(set(everything)) == len(everything)
    if len(everything) >= 10:
        train, heldout = words(slot, False), words(slot, True)
        assert train and heldout and not set(train) & set(heldout)


def test_short_lists_are_not_split() -> None:
    assert share("abc", True) == share("abc", False) == ("a", "b", "c")


def test_fill_takes_values_first_and_draws_the_rest() -> None:
    text = fill(Random(1), "{city} {int:3:3} {a} {animal}", {"city": "X", "a": 1})
    assert re.fullmatch(r"X 3 1 (.+)", text) and text.split()[-1] in " ".join(words("animal"))


@pytest.mark.parametrize(
    ("slot", "form"), [("code", r"[A-Z]{2}\d{3,6}"), ("expression", r"\d+ [-+*/] \d+"), ("year", r"\d{4}")]
)
def test_made_up_values(slot: str, form: str) -> None:
    assert all(re.fullmatch(form, draw(Random(seed), slot)) for seed in range(50))


def test_requests_take_many_forms() -> None:
    forms = {request(Random(seed), "tell me the time") for seed in range(400)}
    assert len(forms) > 50 and all("tell me the time" in form.lower() for form in forms)
    assert {vary(Random(seed), "Why?") for seed in range(200)} >= {"Why?", "why?", "Why", "why"}


def test_small_words() -> None:
    assert article("owl") == "an owl" and article("cat") == "a cat"
    assert listing(["a"]) == "a" and listing(["a", "b", "c"]) == "a, b and c"
