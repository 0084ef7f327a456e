"""Slots: words drawn for the generators, and templates filled with them.

Every family draws through here. Invariant: what training draws and what held-out draws are disjoint wherever
a list has at least ten entries.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any
from zlib import crc32

FOLDER = Path(__file__).parent
_SLOT = re.compile(r"\{(int:-?\d+:\d+|\w+)\}")
_NUMBERS = {"small": (1, 60), "few": (2, 9), "degrees": (15, 28), "price": (10, 500), "order": (1000, 99999),
            "year": (1200, 2035)}  # fmt: skip


@cache
def table(name: str) -> dict[str, Any]:
    """A TOML table of this folder."""
    with open(FOLDER / f"{name}.toml", "rb") as file:
        return tomllib.load(file)


@cache
def words(slot: str, heldout: bool | None = None) -> tuple[str, ...]:
    """The list of a slot: all of it, or its training or held-out share."""
    entries = tuple(entry.strip() for entry in table("words")["slots"][slot].split(","))
    return entries if heldout is None else share(entries, heldout)


def share(entries: Sequence[str], heldout: bool) -> tuple[str, ...]:
    """The training or the held-out entries of a list; short lists are not split.

    Lists begin with what people say most, which is always trained: of their last third about a third is kept.
    """
    if len(entries) < 10:
        return tuple(entries)
    last_third = entries[2 * len(entries) // 3 :]
    kept = [entry for entry in last_third if crc32(entry.encode()) % 3 == 1] or [entries[-1]]
    return tuple(kept) if heldout else tuple(entry for entry in entries if entry not in kept)


def draw(rng: Random, slot: str, heldout: bool = False) -> str:
    """A value for a slot: a word of its list, or a number or code made up."""
    if slot in _NUMBERS:
        return str(rng.randint(*_NUMBERS[slot]))
    if slot == "amount":
        return str(rng.choice((rng.randint(2, 99), 10 * rng.randint(1, 99), 50 * rng.randint(1, 60))))
    if slot == "expression":
        operator = rng.choice("+-*/") if rng.random() < 0.8 else "+"
        big = 20 if operator in "*/" else 999
        return f"{rng.randint(2, 999)} {operator} {rng.randint(2, big)}"
    if slot == "code":
        letters = "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(2))
        return letters + "".join(rng.choice("0123456789") for _ in range(rng.randint(3, 6)))
    return rng.choice(words(slot, heldout))


def fill(
    rng: Random, template: str, values: Mapping[str, object] | None = None, heldout: bool = False
) -> str:
    """The template with every {slot} replaced: from `values` first, else drawn. {int:2:9} is a number."""

    def replacement(match: re.Match[str]) -> str:
        name = match.group(1)
        if name.startswith("int:"):
            low, high = map(int, name.removeprefix("int:").split(":"))
            return str(rng.randint(low, high))
        return str(values[name]) if values and name in values else draw(rng, name, heldout)

    return _SLOT.sub(replacement, template)


def pick(rng: Random, entries: Sequence[str], heldout: bool = False, trained: Sequence[str] = ()) -> str:
    """One entry of the training or held-out share; those of `trained` are for training alone."""
    return rng.choice(share(entries, heldout) if heldout else (*share(entries, heldout), *trained))


# How a deed ("tell me the time") is asked for, besides bare.
_POLITE = """Please {}. | Please {} | Can you {}? | Could you {}? | Could you please {}? | Can you please {}?
| {}, please. | {} please | I want you to {}. | I'd like you to {}. | Would you {}? | Hi, can you {}?
| Hello! Please {}. | I need you to {}. | Help me: {}. | You should {}. | Now {}. | Will you {} for me?
| Hey, {}! | Let's try this: {}.""".replace("\n", " ").split(" | ")


def request(rng: Random, deed: str) -> str:
    """A request for a deed ("tell me the time"): bare, or with one of many polite frames."""
    if rng.random() < 0.35:
        return vary(rng, deed[0].upper() + deed[1:] + rng.choice((".", ".", "", "!")))
    return vary(rng, first_upper(rng.choice(_POLITE).format(deed)))


def vary(rng: Random, text: str) -> str:
    """The text as hasty people type it: at times in lower case, without end mark, with an opening word."""
    luck = rng.random()
    if luck < 0.10:
        text = text.rstrip(".?!")
    elif luck < 0.22:
        text = text.lower()
    elif luck < 0.28:
        text = text.lower().rstrip(".?!")
    elif luck < 0.33 and text.endswith("?"):
        text = rng.choice(("Hi! ", "Hello. ", "Okay. ", "Tell me: ", "Question: ", "One more thing. ")) + text
    elif luck < 0.35:
        text = text.rstrip(".?!") + rng.choice(("??", "!!", " ?", "..."))
    return text


def first_upper(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def listing(items: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]


def article(noun: str) -> str:
    """The noun with "a" or "an"."""
    return ("an " if noun[0].lower() in "aeiou" else "a ") + noun
