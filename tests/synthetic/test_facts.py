"""Facts, manners, memory, recall and languages: the tables are whole and the answers follow from them."""

from __future__ import annotations

import re
from random import Random

import pytest

from qnext.synthetic import facts, languages, manners, recall
from qnext.synthetic.dialogue import Setting, contains
from qnext.synthetic.slots import table


def test_there_are_a_hundred_and_fifty_plain_questions() -> None:
    entries = facts._answers()
    assert len(entries) >= 150
    for entry in entries:
        assert entry.questions and entry.answers
        assert all(question[-1] in ".?!" for question in entry.questions)
        assert not entry.clause.endswith((".", "?"))
    questions = [question for entry in entries for question in entry.questions]
    assert len(set(questions)) == len(questions)


def test_capitals_are_asked_both_ways() -> None:
    assert len(facts._capitals()) >= 180
    assert set(table("capitals")["famous"].split(", ")) <= set(facts._capitals())
    ways = set()
    for seed in range(200):
        dialogue = facts.capital(Random(seed), Setting())
        question, answer = (message.content for message in dialogue.messages)
        country, city = next(
            (c, t) for c, t in facts._capitals().items() if c.lower() in answer.lower() and t in answer
        )
        ways.add(dialogue.must[0] == city)
        assert contains(question, country) or contains(question, city)
    assert ways == {True, False}


@pytest.mark.parametrize("rows", table("facts")["table"], ids=lambda rows: rows["ask"][0])
def test_rows_are_pairs(rows: dict[str, object]) -> None:
    pairs = [row.split(": ") for row in str(rows["rows"]).split("; ")]
    assert all(len(pair) == 2 for pair in pairs) and len({left for left, _ in pairs}) == len(pairs)
    assert ("back" in rows) == ("reply" in rows)
    if "back" in rows:
        assert len({right for _, right in pairs}) == len(pairs)


def test_what_is_unknown_is_not_answered() -> None:
    for seed in range(200):
        answer = facts.unknown(Random(seed), Setting()).messages[-1].content
        assert re.search(r"not know|too hard|cannot|no tool", answer)


@pytest.mark.parametrize("talk", table("manners")["talk"], ids=lambda talk: talk["say"][0])
def test_small_talk_is_whole(talk: dict[str, list[str]]) -> None:
    assert set(talk) == {"say", "answer", "thought"} and all(talk.values())
    assert len(set(talk["say"])) == len(talk["say"])


def test_what_was_told_is_remembered() -> None:
    for seed in range(200):
        dialogue = manners.remember(Random(seed), Setting())
        told = " ".join(message.content for message in dialogue.messages[:-1])
        assert all(contains(told, value) for value in dialogue.must)
        if not dialogue.must:
            assert re.search(r"not told|not tell", dialogue.messages[-1].content)


def test_recall_needs_only_the_prompt() -> None:
    for seed in range(400):
        dialogue = recall.make(Random(seed), Setting())
        assert dialogue.must
        if not re.search(
            r"how many|count|reverse|around|backwards|sort|order|spell|letter|is .* in|does|one of",
            dialogue.messages[0].content,
            re.I,
        ):
            assert contains(dialogue.messages[0].content, dialogue.must[0])


def test_needles_lie_in_the_stories_given() -> None:
    setting = Setting(stories=("The cat sat. The dog ran! A bird sang. It was late.",))
    prompt = recall.needle(Random(1), setting).messages[0].content
    assert "The cat sat." in prompt


@pytest.mark.parametrize("code", languages.CODES)
def test_a_language_answers_in_itself(code: str) -> None:
    marks = {"pt": "ãõçáéíóúâê", "es": "áéíóúñ¿¡", "fr": "éèêàçùâî", "zh": "的是一我你有不。，"}[code]
    texts = [languages.make_in(Random(seed), code, Setting()).messages[-1].content for seed in range(200)]
    assert sum(any(mark in text for mark in marks) for text in texts) > 40
    assert not any(re.search(r"\b(the|is|you|and)\b", text) for text in texts)
    assert len(table("languages")[code]["numbers"].split(", ")) == 20


def test_far_needles_lie_as_deep_and_as_far_as_asked() -> None:
    stories = [f"One day, number {i} went home. The end of {i} came! It slept." for i in range(40)]
    for setting in (Setting(True, stories=stories), Setting(True)):
        for length in (50, 400):
            for depth in (0.0, 0.5, 1.0):
                dialogue = recall.far_needle(
                    Random(f"{length}/{depth}"), setting, length, depth, lambda text: len(text.split())
                )
                _, text, question = dialogue.messages[0].content.split("\n")
                found = re.search(r"The (?:secret|magic|number|pass)[^.]*\.", text)
                assert found and contains(found.group(), dialogue.must[0]) and question.endswith("?")
                assert length <= len(text.split()) < length + 40
                assert abs(found.start() / (len(text) - len(found.group())) - depth) < 0.15


def test_greetings_are_those_of_the_tables() -> None:
    for code in languages.CODES:
        assert set(languages.greetings(code)) == set(table("languages")[code]["talk"][0][0])
    assert not set(manners.greetings(True)) & set(manners.greetings(False))
