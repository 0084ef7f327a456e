"""Coinage: values that are made up, so that what training teaches of them is to copy, and not a list.

Called by the families whose answers repeat what was said. Invariant: held-out values are never made up, and
none of their words is borrowed.
"""

from __future__ import annotations

from functools import cache
from random import Random

from .slots import FOLDER, draw, first_upper, table, words

_ONSETS = """b c d f g h j k l m n p r s t v w y z bl br ch cl cr dr fl fr gl gr kn pl pr qu sc sh sk sl sm sn
sp st str sw th tr tw wh""".split()
_VOWELS = "a e i o u a e i o u ai au ea ee ie oa oi oo ou".split()
_CODAS = ["", "", "", *"b ck ct d ff g l ll m n nd ng nk nt p r rd rk rm rn rt s sh sk ss st t tch x".split()]

PROPER = frozenset("city name country company".split())
_TITLES = frozenset("song film book team".split())
_PLAIN = frozenset(
    "food fruit animal thing color genre topic word event room device product sport place".split()
)
_PHRASES = {"message": (2, 6), "task": (2, 4)}  # words of one
_STREETS = ("Street", "Road", "Lane", "Avenue", "Square")
_OPEN = PROPER | _TITLES | _PLAIN | _PHRASES.keys() | {"street", "email", "date", "clock"}


def draw_open(rng: Random, slot: str, heldout: bool = False) -> str:
    """A value for a slot that is to be copied: in training, most are made up."""
    if heldout or slot not in _OPEN or rng.random() < 0.4:
        return draw(rng, slot, heldout)
    if slot == "date":
        return _date(rng)
    if slot == "clock":
        minutes = f":{rng.randrange(0, 60, 5):02}" if rng.random() < 0.6 else rng.choice((" am", " pm"))
        return f"{rng.randint(1, 12)}{minutes}"
    if slot == "email":
        return f"{word(rng)}@{word(rng)}.{rng.choice(('com', 'org', 'net', 'edu'))}"
    if slot == "street":
        return f"{rng.randint(1, 199)} {first_upper(word(rng))} {rng.choice(_STREETS)}"
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
    return tuple(each for each in common() if each not in kept)


@cache
def common() -> tuple[str, ...]:
    """Plain words of stories, all of them."""
    return tuple((FOLDER / "common.txt").read_text().split())


def word(rng: Random) -> str:
    """A word of syllables, one of stories, or the beginning of one with the end of another."""
    luck, known = rng.random(), borrowed()
    if luck < 0.35:
        return coined(rng)
    if luck < 0.75:
        return rng.choice(known)
    first, last = rng.choice(known), rng.choice(known)
    return first[: rng.randint(2, 4)] + last[-rng.randint(2, 5) :]


def _date(rng: Random) -> str:
    if rng.random() < 0.5:
        return f"{rng.choice(words('month'))} {rng.randint(1, 31)}"
    return f"{rng.randint(2024, 2031)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}"
