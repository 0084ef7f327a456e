"""Copying: the drill of writing again, exactly, what stands in the prompt, many values to a question.

Called by `chat`. A word has other tokens at the start of a JSON string than after a space, and a model that
never had to write it there cannot know them: so lists are drawn from all common words, those of held-out
values among them. Invariant: in training no held-out value is the argument of a call.
"""

from __future__ import annotations

import json
from random import Random

from .coinage import common, draw_open, word
from .dialogue import Dialogue, Setting, ask
from .slots import fill, first_upper, listing, table
from .tools import invented, requested

_VALUES = ("message", "email", "street", "date", "clock", "task", "city", "food", "code", "amount")
_BREAKS = (", ", ", ", " ", "\n", "; ", " and ", " / ")


def make(rng: Random, setting: Setting) -> Dialogue:
    """Values as a JSON list, as the arguments of one call, or simply again."""
    luck = rng.random()
    if luck < 0.45:
        return as_list(rng, setting)
    return with_many(rng, setting) if luck < 0.8 else again(rng, setting)


def as_list(rng: Random, setting: Setting) -> Dialogue:
    """Words and values of the prompt as a JSON list."""
    values = [_value(rng, setting) for _ in range(rng.randint(4, 20))]
    shown = rng.choice(_BREAKS).join(values) if rng.random() < 0.9 else listing(values)
    answer = json.dumps(values, ensure_ascii=False)
    forms = table("recall")["list"]
    return ask(fill(rng, rng.choice(forms["ask"]), {"items": shown}), answer, forms["thought"], [answer])


def with_many(rng: Random, setting: Setting) -> Dialogue:
    """A request for an invented tool that says three to seven arguments."""
    return requested(rng, invented(rng, range(3, 8)), setting)


def again(rng: Random, setting: Setting) -> Dialogue:
    """Five to sixteen values, said once more."""
    values = [_value(rng, setting) for _ in range(rng.randint(5, 16))]
    text = rng.choice((" ", ", ")).join(values)
    forms = table("recall")["repeat"]
    return ask(fill(rng, rng.choice(forms["ask"]), {"text": text}), text, forms["thought"], [text])


def _value(rng: Random, setting: Setting) -> str:
    luck = rng.random()
    if luck < 0.15:
        return draw_open(rng, rng.choice(_VALUES), setting.heldout)
    made = rng.choice(common()) if luck < 0.75 else word(rng)
    if rng.random() < 0.1:
        made += " " + rng.choice(common())
    return first_upper(made) if rng.random() < 0.3 else made
