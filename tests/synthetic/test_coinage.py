"""Made-up values: most of what training copies, none of what is kept back."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from qnext.synthetic.coinage import PROPER, borrowed, common, draw_open, frequent, whole
from qnext.synthetic.slots import draw, table, words
from qnext.text.tokenizer import Tokenizer

SLOTS = ("city", "song", "word", "message", "task", "street", "email", "date", "clock", "room")


def kept_back() -> set[str]:
    return {value for slot in table("words")["slots"] for value in words(slot, True)}


@pytest.mark.parametrize("slot", [*table("words")["slots"]])
def test_what_is_kept_back_is_never_made_up(slot: str) -> None:
    if slot == "unit_pair":
        return
    for seed in range(50):
        assert draw_open(Random(seed), slot, heldout=True) == draw(Random(seed), slot, heldout=True)


@pytest.mark.parametrize("slot", ["clock", "date", "currency"])
def test_no_hour_or_date_that_is_kept_back_is_made_up(slot: str) -> None:
    assert not {draw_open(Random(seed), slot) for seed in range(3000)} & set(words(slot, True))


def test_no_word_that_is_kept_back_is_borrowed() -> None:
    assert len(borrowed()) > 8000
    assert not kept_back() & set(borrowed())
    assert not {"coffee", "basement", "omelette", "oven"} & set(borrowed())


@pytest.mark.parametrize("slot", SLOTS)
def test_most_values_are_new_ones(slot: str) -> None:
    drawn = [draw_open(Random(seed), slot) for seed in range(400)]
    known = set(words(slot))
    share = sum(value not in known for value in drawn) / len(drawn)
    assert 0.4 < share < 0.7, share
    assert len(set(drawn)) > 100
    assert all(value == value.strip() and value for value in drawn)


@pytest.mark.parametrize("slot", sorted(PROPER))
def test_names_begin_with_capitals(slot: str) -> None:
    assert all(word[0].isupper() for seed in range(200) for word in draw_open(Random(seed), slot).split())


def test_a_slot_that_has_few_values_keeps_to_its_list() -> None:
    assert {draw_open(Random(seed), "weekday") for seed in range(200)} == set(words("weekday"))


def test_whole_words_are_one_token_after_a_space_and_no_others_of_the_list_but_names() -> None:
    models = Path(__file__).parents[2] / "qnext" / "models"
    tokenizer = Tokenizer.from_pretrained(models / "tiny-thinking")
    assert set(whole()) < set(frequent()) < set(common()) and len(common()) == len(set(common()))
    single = {each for each in common() if len(tokenizer.encode(f" {each}")) == 1}
    assert set(whole()) <= single
    assert all(each in common()[-99:] for each in single - set(whole()))


def test_a_message_may_end_like_another_argument() -> None:
    messages = [draw_open(Random(seed), "message") for seed in range(300)]
    assert any(" on " in each or " before " in each for each in messages)
    assert not kept_back() & {*messages}
