"""Stories: a made story keeps its world, a told one holds what was asked for."""

from __future__ import annotations

import re
from random import Random

import pytest

from qnext.synthetic import story
from qnext.synthetic.dialogue import Setting, contains
from qnext.synthetic.slots import table

REAL = (
    "Once upon a time, there was a little dog named Rex. Rex liked to run in the park. "
    + "He ran and ran. " * 60,
    "Lily saw a bird in the garden. The bird sang a song. Lily smiled and went home.",
)


@pytest.mark.parametrize("plot", range(len(table("story")["plot"])))
def test_a_plot_is_complete(plot: int) -> None:
    made = table("story")["plot"][plot]
    assert len(made["beats"]) >= 5 and all(made["beats"]) and made["summary"] and made["moral"] and made["qa"]
    for question, answer, wanted in made["qa"]:
        assert question.endswith("?") and contains(
            answer.replace("{", "").replace("}", ""), wanted.strip("{}")
        )


def test_stories_are_written_cleanly() -> None:
    for seed in range(400):
        made = story.compose_story(Random(seed), Setting())
        assert not re.search(r"[{}]|  | [.,]|\ba [aeiou]", made.text), made.text
        assert made.text.count('"') % 2 == 0
        assert not re.search(
            r'[.?!]"? [a-z]',
            re.sub(r'[?!]" (?:\w+ )*?(?:asked|said|cried|called|thought|shouted)', "", made.text),
        )
        assert made.values["H"] in made.text and len(re.findall(r"[.!?]", made.text)) >= 5


def test_the_hero_keeps_one_gender() -> None:
    for seed in range(300):
        made = story.compose_story(Random(seed), Setting(), hero="fox")
        wrong = {"he", "him", "his"} if made.values["he"] == "she" else {"she", "her"}
        assert not wrong & set(re.findall(r"\w+", made.text.lower()))


def test_stories_vary() -> None:
    assert len({story.compose_story(Random(seed), Setting()).text for seed in range(300)}) == 300


def test_a_made_story_holds_what_was_asked_for() -> None:
    for seed in range(300):
        dialogue = story.made(Random(seed), Setting())
        question, answer = dialogue.messages[0].content, dialogue.messages[-1].content
        for text in dialogue.must:
            assert contains(question, text) and contains(answer, text)


def test_given_words_are_used() -> None:
    for seed in range(200):
        dialogue = story.with_words(Random(seed), Setting())
        assert dialogue.must and all(contains(dialogue.messages[-1].content, word) for word in dialogue.must)


def test_a_brief_story_has_three_or_four_sentences() -> None:
    for seed in range(100):
        text = story.brief(Random(seed), Setting()).messages[-1].content
        assert 3 <= len(re.findall(r"[.!?](?: |$)", text)) <= 4


def test_a_continued_story_starts_where_the_prompt_ends() -> None:
    dialogue = story.continued(Random(3), Setting())
    assert dialogue.messages[-1].content[0].isupper()
    assert dialogue.messages[-1].content not in dialogue.messages[0].content


def test_real_stories_are_told_by_topic_and_cut_at_a_sentence_end() -> None:
    topics = set()
    for seed in range(100):
        dialogue = story.told(Random(seed), Setting(stories=REAL))
        answer = dialogue.messages[-1].content
        assert answer.endswith(".") and len(answer.split()) <= 160
        topics |= set(dialogue.must)
    assert {"dog", "bird"} <= topics


def test_cut_closes_an_open_quote() -> None:
    text = 'He said, "' + "We run fast. " * 80 + '"'
    assert story.cut(text, 20).count('"') == 2
