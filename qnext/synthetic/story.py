"""Story chat: made stories with a small world behind them, and real ones told on demand.

Called by `chat`. Invariant: a made story keeps its hero, helper, place and things from the first sentence to
the last, and what a prompt asks for (an animal, a name, words) stands in the story.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

from .dialogue import Dialogue, Setting, ask, assistant, user
from .slots import article, fill, first_upper, listing, pick, share, table, vary, words

_PRONOUNS = {"she": ("she", "her", "her", "herself"), "he": ("he", "his", "him", "himself")}
_SAID = r"(?:asked|said|cried|called|shouted|thought)"
_WORDS_TOLD = 120
_TOPIC = re.compile(r"\b(?:a|an|the|her|his|little|big) (?=([a-z]{3,})\b)")


@dataclass(frozen=True)
class Story:
    """A made story, the values of its slots and the plot it came from."""

    text: str
    values: Mapping[str, str]
    plot: Mapping[str, Any]


def make(rng: Random, setting: Setting) -> Dialogue:
    """A story told, told on, summed up or asked about."""
    luck = rng.random()
    if luck < 0.4 and setting.stories:
        return told(rng, setting)
    if luck < 0.68:
        return made(rng, setting)
    if luck < 0.72:
        return brief(rng, setting)
    if luck < 0.8:
        return with_words(rng, setting)
    if luck < 0.87:
        return continued(rng, setting)
    return asked_about(rng, setting)


def compose_story(rng: Random, setting: Setting, hero: str = "") -> Story:
    """A story of a hero (a kind such as "fox"; drawn when empty)."""
    values = _cast(rng, setting, hero)
    plot = rng.choice(table("story")["plot"])
    opening, ending = table("story")["opening"], table("story")["ending"]
    sentences = [rng.choice(opening["first"]), rng.choice(opening["second"])]
    sentences += [rng.choice(beat) for beat in plot["beats"]]
    sentences += [rng.choice(ending["last"]), rng.choice(["", *plot["moral"]])]
    values["day"] = rng.choice(opening["day"])
    text = " ".join(fill(rng, sentence, values) for sentence in sentences if sentence)
    if rng.random() < 0.5:  # a paragraph after the opening and before the end
        text = text.replace(f" {values['day']}", f"\n\n{values['day']}", 1)
    return Story(_capitals(text), values, plot)


def _cast(rng: Random, setting: Setting, hero: str) -> dict[str, str]:
    cast = {name: entries.split(", ") for name, entries in table("story")["cast"].items()}
    kind = hero or rng.choice(
        share(cast[rng.choice(("people", "animals", "animals", "wonders"))], setting.heldout)
    )
    female = kind in ("girl", "princess", "queen", "fairy", "mermaid", "witch", "hen", "cow")
    male = kind in ("boy", "prince", "king", "wizard", "pirate", "knight")
    gender = "she" if female or (not male and rng.random() < 0.5) else "he"
    name = rng.choice(share(cast["girls" if gender == "she" else "boys"], setting.heldout))
    he, his, him, himself = _PRONOUNS[gender]
    helper = rng.choice([h for h in cast["helpers"] if kind not in h])
    place = rng.choice(cast["places"])
    known = "the " + helper.split()[-1]
    return {
        "H": name, "K": kind, "he": he, "his": his, "him": him, "himself": himself,
        "He": first_upper(he), "His": first_upper(his), "A": helper, "A2": first_upper(helper), "F": known,
        "F2": "a friend", "P": place, "P2": first_upper(place), "T": rng.choice(cast["things"]),
        "C": rng.choice(words("color")[:11]), "S": rng.choice(cast["food"]),
        "J": rng.choice([nature for nature in cast["natures"] if nature not in helper]),
        "I": rng.choice(("flute", "drum", "guitar", "piano", "violin")),
    }  # fmt: skip


def _capitals(text: str) -> str:
    """Capitals where sentences start (not within `"Oh!" said the owl.`), and "an" before vowels."""
    start = rf'(^|[.!?] |[.!?]" (?!(?:{_SAID}|(?:she|he|they) (?:all )?{_SAID})\b)|\n\n)([a-z])'
    text = re.sub(start, lambda m: m.group(1) + m.group(2).upper(), text)
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def made(rng: Random, setting: Setting) -> Dialogue:
    """A made story about a kind of hero, a name, or anything."""
    story = compose_story(rng, setting)
    values = story.values
    luck = rng.random()
    if luck < 0.3:
        return _tell(rng, story, vary(rng, pick(rng, table("story")["prompts"]["any"], setting.heldout)), [])
    subject, must = article(values["K"]), [values["K"]]
    if luck < 0.45:
        subject, must = f"{subject} named {values['H']}", [values["K"], values["H"]]
    elif luck < 0.55:
        subject, must = f"{subject} and {values['A']}", [values["K"], values["F"].split()[-1]]
    elif luck < 0.65 and f"{values['C']} {values['T']}" in story.text:
        subject, must = f"{subject} and a {values['C']} {values['T']}", [values["K"], values["T"]]
    elif luck < 0.72:
        subject, must = values["H"], [values["H"]]
    question = pick(rng, table("story")["prompts"]["about"], setting.heldout).replace("{X}", subject)
    return _tell(rng, story, vary(rng, re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", question)), must)


def _tell(rng: Random, story: Story, question: str, must: list[str]) -> Dialogue:
    values = story.values
    summary = fill(rng, story.plot["summary"], values)
    thought = rng.choice(
        (f"The user wants a story. I take {article(values['K'])} named {values['H']}. {summary}",
         f"I tell a story about {values['H']}, {article(values['K'])}. {summary}",
         f"My story: {summary} {values['H']} is {article(values['K'])}.")
    )  # fmt: skip
    return ask(question, story.text, _capitals(thought), must)


def brief(rng: Random, setting: Setting) -> Dialogue:
    """A story of three sentences."""
    story = compose_story(rng, setting)
    sentences = [
        rng.choice(table("story")["opening"]["first"][:4]),
        story.plot["summary"],
        rng.choice(story.plot["moral"]),
    ]
    values = {**story.values, "F": story.values["A"]}  # no helper was met before
    text = _capitals(" ".join(fill(rng, sentence, values) for sentence in sentences))
    question = rng.choice(table("story")["prompts"]["brief"]).replace("{X}", article(story.values["K"]))
    return _tell(rng, Story(text, story.values, story.plot), vary(rng, question), [story.values["K"]])


def with_words(rng: Random, setting: Setting) -> Dialogue:
    """A made story that has to use two or three given words."""
    story = compose_story(rng, setting)
    values = story.values
    pool = [values[key] for key in ("K", "T", "C", "S") if re.search(rf"\b{values[key]}\b", story.text)]
    if len(pool) < 2:
        return brief(rng, setting)
    chosen = rng.sample(pool, min(len(pool), rng.randint(2, 3)))
    question = pick(rng, table("story")["prompts"]["words"], setting.heldout)
    return _tell(rng, story, question.replace("{W}", listing(chosen)), chosen)


def continued(rng: Random, setting: Setting) -> Dialogue:
    """The first sentences are given, the rest is told."""
    story = compose_story(rng, setting)
    sentences = re.split(r"(?<=[.!?])\s+(?=[A-Z])", story.text)
    cut = rng.randint(1, 3)
    start, rest = " ".join(sentences[:cut]), " ".join(sentences[cut:])
    question = rng.choice(table("story")["prompts"]["continue"]).replace("{B}", start)
    summary = fill(rng, story.plot["summary"], story.values)
    return ask(
        question,
        rest,
        _capitals(f"The story is about {story.values['H']}. I go on: {summary}"),
        [story.values["H"]],
    )


def asked_about(rng: Random, setting: Setting) -> Dialogue:
    """A story is given and summed up or asked about; at times the model tells it first."""
    story = compose_story(rng, setting)
    prompts = table("story")["prompts"]
    summary = _capitals(fill(rng, story.plot["summary"], story.values))
    luck = rng.random()
    if luck < 0.35:
        question, answer, must = rng.choice(prompts["summary"]), summary, [story.values["H"]]
    elif luck < 0.55:
        question = fill(rng, rng.choice(prompts["more"][1:]), story.values)
        answer, must = _capitals(f"The name is {story.values['H']}."), [story.values["H"]]
        if question.startswith("Who"):
            answer = f"It is about {article(story.values['K'])} named {story.values['H']}."
    else:
        question, answer, wanted = (fill(rng, part, story.values) for part in rng.choice(story.plot["qa"]))
        answer, must = _capitals(answer), [wanted.removeprefix("the ")]
        question = _capitals(question)
    thought = f"I look into the story. {answer}"
    if rng.random() < 0.3:
        first = _tell(rng, story, rng.choice(prompts["any"]), [])
        return Dialogue(
            (*first.messages, user(question), assistant(answer, thought)), must=tuple(must), checkable=True
        )
    return ask(f"{rng.choice(prompts['question'])}\n\n{story.text}\n\n{question}", answer, thought, must)


def told(rng: Random, setting: Setting) -> Dialogue:
    """A real story, cut at a sentence end, asked for by a word that stands in it."""
    text = cut(rng.choice(setting.stories))
    prompts = table("story")["prompts"]
    known = _topics()
    found = sorted({word for word in _TOPIC.findall(text[:300]) if word in known})
    named = re.search(r"\b(?:named|called) ([A-Z][a-z]+)\b", text[:300])
    if not found or rng.random() < 0.2:
        question, must = vary(rng, pick(rng, prompts["any"], setting.heldout)), []
        thought = "The user wants a story. I tell one."
    else:
        subject = rng.choice(found)
        phrase = article(subject)
        if named and rng.random() < 0.3:
            phrase = (
                f"{phrase} and {named.group(1)}"
                if subject not in ("girl", "boy")
                else f"{phrase} named {named.group(1)}"
            )
        question = vary(rng, pick(rng, prompts["about"], setting.heldout).replace("{X}", phrase))
        thought, must = f"The user wants a story about {phrase}. I tell a short one.", [subject]
    return ask(question, text, thought, must)


def cut(text: str, limit: int = _WORDS_TOLD) -> str:
    """The story up to about `limit` words, ended at a paragraph or sentence end."""
    if len(text.split()) <= limit * 1.3:
        return text
    kept, count = "", 0
    for piece in re.split(r'(?<=[.!?])(?=\s)|(?<=[.!?]")(?=\s)', text):
        count += len(piece.split())
        if count > limit and kept:
            break
        kept += piece
    return kept if kept.count('"') % 2 == 0 else kept + '"'


@cache
def _topics() -> frozenset[str]:
    cast = table("story")["cast"]
    return frozenset(
        ", ".join(cast[name] for name in ("people", "animals", "wonders", "things", "topics")).split(", ")
    )
