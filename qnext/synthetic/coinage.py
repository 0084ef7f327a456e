"""Coinage: values that are made up, so that what training teaches of them is to copy, and not a list.

Called by the families whose answers repeat what was said. Invariant: held-out values are never made up, none
of their words is borrowed, and no run of words taken from a story holds one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from random import Random

from .slots import FOLDER, draw, first_upper, table, words

_ONSETS = """b c d f g h j k l m n p r s t v w y z bl br ch cl cr dr fl fr gl gr kn pl pr qu sc sh sk sl sm sn
sp st str sw th tr tw wh""".split()
_VOWELS = "a e i o u a e i o u ai au ea ee ie oa oi oo ou".split()
_CODAS = ["", "", "", *"b ck ct d ff g l ll m n nd ng nk nt p r rd rk rm rn rt s sh sk ss st t tch x".split()]

PROPER = frozenset("city name country company language".split())
_TITLES = frozenset("song film book team".split())
_PLAIN = frozenset(
    "food fruit animal thing color genre topic word event room device product sport place".split()
)
_PHRASES = {"message": (2, 6), "task": (2, 4)}  # words of one
_TAILS = {"day": ("on", "before"), "clock": ("at", "before"), "name": ("with", "to"), "city": ("in", "from")}
_STREETS = ("Street", "Road", "Lane", "Avenue", "Square")
_OPEN = PROPER | _TITLES | _PLAIN | _PHRASES.keys() | {"street", "email", "date", "clock", "currency"}
_HOURS = (*"midnight midday dawn sunrise sunset dusk teatime bedtime lunch".split(), "half past one",
          "half past six", "quarter past three", "quarter to nine", "ten to four", "dinner time")  # fmt: skip
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_RUN = re.compile(r"(?<=[ \n\"])[A-Za-z]+(?: [A-Za-z]+){1,7}")


def draw_open(rng: Random, slot: str, heldout: bool = False, stories: Sequence[str] = ()) -> str:
    """A value for a slot that is to be copied: in training, most are made up, some of words of `stories`."""
    if heldout or slot not in _OPEN or rng.random() < 0.4:
        return draw(rng, slot, heldout)
    made = _made_up(rng, slot, stories)
    while _kept_back().fullmatch(made):  # an hour or a date, by chance
        made = _made_up(rng, slot, stories)
    return made


def _made_up(rng: Random, slot: str, stories: Sequence[str]) -> str:
    if slot == "date":
        return _date(rng)
    if slot == "clock":
        return _clock(rng)
    if slot == "currency":
        return "".join(rng.choice(_LETTERS) for _ in range(3))
    if slot == "email":
        return f"{word(rng)}@{word(rng)}.{rng.choice(('com', 'org', 'net', 'edu'))}"
    if slot == "street":
        return f"{rng.randint(1, 199)} {first_upper(word(rng))} {rng.choice(_STREETS)}"
    run = said(rng, stories) if slot in _PHRASES and rng.random() < 0.6 else ""
    if slot == "message" and rng.random() < 0.3:  # what ends like another argument is one all the same
        kind = rng.choice(tuple(_TAILS))
        run = f"{run or word(rng)} {rng.choice(_TAILS[kind])} {draw(rng, kind)}"
    if run:
        return first_upper(run) if slot == "message" else run
    count = rng.randint(*_PHRASES[slot]) if slot in _PHRASES else rng.choice((1, 1, 1, 2))
    made = [word(rng) for _ in range(count)]
    if slot in PROPER or slot in _TITLES:
        made = [first_upper(each) for each in made]
    text = " ".join(made)
    return first_upper(text) if slot == "message" else text


def coined(rng: Random) -> str:
    """A word made up of one to three syllables."""
    parts = (rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS) for _ in range(rng.randint(1, 3)))
    return "".join(parts)


@cache
def borrowed() -> tuple[str, ...]:
    """Plain words of stories, without those of values that are kept back."""
    kept = {
        part
        for slot in table("words")["slots"]
        for value in words(slot, True)
        for part in value.lower().split()
    }
    return tuple(each for each in common() if each.lower() not in kept)


@cache
def common() -> tuple[str, ...]:
    """Plain words of stories and tales, all of them."""
    return tuple((FOLDER / "common.txt").read_text().split())


@cache
def whole() -> tuple[str, ...]:
    """Those that the embedded models' vocabulary has as one token after a space, the file's first paragraph:
    how such a word is written anywhere else has to be known of each."""
    return tuple((FOLDER / "common.txt").read_text().split("\n\n")[0].split())


@cache
def frequent() -> tuple[str, ...]:
    """The commonest of them and those that are one token, the file's first two paragraphs."""
    return tuple(" ".join((FOLDER / "common.txt").read_text().split("\n\n")[:2]).split())


@cache
def foreign() -> tuple[str, ...]:
    """Words and short runs of Portuguese, Spanish, French and Chinese."""
    return tuple((FOLDER / "foreign.txt").read_text(encoding="utf-8").split())


def word(rng: Random) -> str:
    """A word of syllables, one of stories, or the beginning of one with the end of another."""
    luck, known = rng.random(), borrowed()
    if luck < 0.3:
        return coined(rng)
    if luck < 0.65:
        return rng.choice(known)
    # Cut anywhere: pieces of every length bring tokens that begin no word, and tokens that end none.
    first, last = rng.choice(known), rng.choice(known)
    return first[: rng.randint(2, max(2, len(first) - 1))] + last[-rng.randint(2, 6) :]


def said(rng: Random, stories: Sequence[str]) -> str:
    """Two to eight words as they stand side by side in a story; "" where none are found."""
    if stories:
        story = rng.choice(stories)
        run = _RUN.search(story, rng.randrange(len(story)))
        if run and " and " not in run[0] and not _kept_back().search(run[0]):  # "and" joins two arguments
            return run[0]
    return ""


@cache
def _kept_back() -> re.Pattern[str]:
    """A value that is kept back, anywhere in a text."""
    slots = (slot for slot in table("words")["slots"] if words(slot, True) != words(slot, False))
    values = "|".join(re.escape(value) for slot in slots for value in words(slot, True))
    return re.compile(rf"\b(?:{values})\b", re.IGNORECASE)


def _clock(rng: Random) -> str:
    luck = rng.random()
    if luck < 0.2:
        return rng.choice(_HOURS)
    return f"{rng.randint(1, 12)}" + (
        f":{rng.randrange(0, 60, 5):02}" if luck < 0.7 else rng.choice((" am", " pm"))
    )


def _date(rng: Random) -> str:
    if rng.random() < 0.5:
        return f"{rng.choice(words('month'))} {rng.randint(1, 31)}"
    return f"{rng.randint(2024, 2031)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
