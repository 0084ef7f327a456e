"""Copying: the drill of writing again, exactly, what stands in the prompt, many values to a question.

Called by `chat`. A word has other tokens at the start of a JSON string than after a space, and a model that
never had to write it there cannot know them: so lists are drawn from all common words, those of held-out
values among them, and from what stories say; mostly from the commonest, since those are one token after a
space, and several here. Invariant: in training no held-out value is the argument of a call.
"""

from __future__ import annotations

import json
from random import Random

from .coinage import common, draw_open, foreign, frequent, said, whole, word
from .dialogue import Dialogue, Setting, ask
from .slots import fill, first_upper, listing, table
from .tools import invented, parallel, requested

_VALUES = ("message", "email", "street", "date", "clock", "task", "city", "food", "code", "amount")
_BREAKS = (", ", ", ", " ", "\n", "; ", " and ", " / ")


def make(rng: Random, setting: Setting) -> Dialogue:
    """Values as a JSON list, as the arguments of one call or of two, or simply again."""
    luck = rng.random()
    if luck < 0.38:
        return as_list(rng, setting)
    if luck < 0.6:
        return with_many(rng, setting)
    return twice(rng, setting) if luck < 0.66 else again(rng, setting)


def spelling(rng: Random, setting: Setting) -> Dialogue:
    """Words alone as a JSON list, most of them those whose spelling has to be known."""
    found = [_word(rng) for _ in range(rng.randint(16, 40))]
    return _listed(rng, [first_upper(each) if rng.random() < 0.3 else each for each in found])


def _word(rng: Random) -> str:
    luck = rng.random()
    return rng.choice(whole() if luck < 0.45 else common()) if luck < 0.7 else word(rng)


def as_list(rng: Random, setting: Setting) -> Dialogue:
    """Words and values of the prompt as a JSON list."""
    return _listed(rng, [_value(rng, setting) for _ in range(rng.randint(4, 28))])


def _listed(rng: Random, values: list[str]) -> Dialogue:
    shown = rng.choice(_BREAKS).join(values) if rng.random() < 0.9 else listing(values)
    answer = json.dumps(values, ensure_ascii=False)
    forms = table("recall")["list"]
    return ask(fill(rng, rng.choice(forms["ask"]), {"items": shown}), answer, forms["thought"], [answer])


def with_many(rng: Random, setting: Setting) -> Dialogue:
    """A request for an invented tool that says three to seven arguments."""
    return requested(rng, invented(rng, range(3, 8)), setting)


def twice(rng: Random, setting: Setting) -> Dialogue:
    """A request for an invented tool and two values of its one argument: two calls."""
    return parallel(rng, invented(rng, (1,)), setting)


def again(rng: Random, setting: Setting) -> Dialogue:
    """Twelve to forty values, or twelve to twenty-eight pieces of stories, said once more."""
    if rng.random() < 0.4:
        values = [_value(rng, setting) for _ in range(rng.randint(12, 40))]
    else:  # here most words stand after a space, and the frequent ones often
        values = [said(rng, setting.stories) or _value(rng, setting) for _ in range(rng.randint(12, 28))]
        values = [first_upper(each) if rng.random() < 0.3 else each for each in values]
    text = rng.choice((" ", ", ")).join(values)
    forms = table("recall")["repeat"]
    return ask(fill(rng, rng.choice(forms["ask"]), {"text": text}), text, forms["thought"], [text])


def _value(rng: Random, setting: Setting) -> str:
    luck = rng.random()
    if luck < 0.12:
        return draw_open(rng, rng.choice(_VALUES), setting.heldout, setting.stories)
    if luck < 0.24 and (run := said(rng, setting.stories)):
        return run
    if luck < 0.3:
        return rng.choice(foreign())
    made = [rng.choice(frequent() if luck < 0.6 else common()) if luck < 0.75 else word(rng)]
    if rng.random() < 0.25:  # a word after another has the spelling of one after a space
        made += [rng.choice(common()) if rng.random() < 0.6 else word(rng) for _ in range(rng.randint(1, 3))]
    return " ".join(first_upper(each) if rng.random() < 0.25 else each for each in made)
