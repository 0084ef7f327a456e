"""Facts: capitals, small tables, a few hundred questions in plain words, and honest ignorance.

Called by `chat`. Invariant: the model is taught to answer only what stands in the tables, and to say that it
does not know what lies far outside them.
"""

from __future__ import annotations

from functools import cache
from random import Random
from typing import Any, NamedTuple

from .dialogue import Dialogue, Setting, ask
from .slots import FOLDER, fill, first_upper, pick, table, vary


class Entry(NamedTuple):
    """A question of answers.txt: direct forms, the clause form ("" for none) and answers."""

    questions: list[str]
    clause: str
    answers: list[str]


def make(rng: Random, setting: Setting) -> Dialogue:
    """One question of any kind."""
    luck = rng.random()
    if luck < 0.25:
        return capital(rng, setting)
    if luck < 0.5:
        return small_table(rng, setting)
    if luck < 0.9:
        return plain_words(rng, setting)
    return unknown(rng, setting)


def capital(rng: Random, setting: Setting) -> Dialogue:
    """A capital by its country, or one time in four the country by its capital."""
    forms = table("facts")["capital"]
    country, city = _country(rng)
    values = {"country": country, "city": city, "Country": first_upper(country), "City": city}
    back = rng.random() < 0.25
    template = pick(rng, forms["back" if back else "ask"], setting.heldout)
    answer = fill(rng, rng.choice(forms["reply" if back else "answer"]), values)
    thought = fill(rng, rng.choice(forms["back_thought" if back else "thought"]), values)
    must = country.removeprefix("the ") if back else city
    return ask(vary(rng, fill(rng, template, values)), first_upper(answer), thought, [must])


def _country(rng: Random) -> tuple[str, str]:
    pairs = _capitals()
    famous = table("capitals")["famous"].split(", ")
    country = rng.choice(famous if rng.random() < 0.35 else list(pairs))
    return country, pairs[country]


@cache
def _capitals() -> dict[str, str]:
    entries = table("capitals")["capitals"].strip().split("; ")
    return {country: city for country, city in (entry.split(": ") for entry in entries)}


def small_table(rng: Random, setting: Setting) -> Dialogue:
    """A row of one of the tables, in either direction where both make sense."""
    rows: dict[str, Any] = rng.choice(table("facts")["table"])
    x, y = rng.choice(rows["rows"].split("; ")).split(": ")
    values = {"x": x, "y": y, "X": first_upper(x), "Y": first_upper(y)}
    back = "back" in rows and rng.random() < 0.4
    question = fill(rng, rng.choice(rows["back" if back else "ask"]), values)
    answer = fill(rng, rng.choice(rows["reply" if back else "answer"]), values)
    return ask(vary(rng, question), answer, fill(rng, rows["thought"], values), [x if back else y])


def plain_words(rng: Random, setting: Setting) -> Dialogue:
    """A question of answers.txt in one of its direct forms, or framed: "Can you explain ...?"."""
    entry = rng.choice(_answers())
    if entry.clause and rng.random() < 0.35:
        question = pick(rng, table("facts")["frames"]["explain"], setting.heldout).format(entry.clause)
    else:
        question = rng.choice(entry.questions)
    subject = entry.clause or question.rstrip(".?!").lower()
    thought = rng.choice(
        (f"The user asks about this: {subject}. I answer in simple words.",
         f"I know something about this: {subject}.",
         f"The question is {subject}. I keep the answer short.",
         f"This is a simple question: {subject}. I can answer it.")
    )  # fmt: skip
    return ask(vary(rng, question), rng.choice(entry.answers), thought)


@cache
def _answers() -> list[Entry]:
    text = (FOLDER / "answers.txt").read_text(encoding="utf-8")
    entries = []
    for block in text.split("\n\n"):
        fields = {line[0]: line[3:] for line in block.splitlines() if line[:2] in ("Q:", "E:", "A:")}
        if fields:
            answers = fields["A"].replace("\\n", "\n").split(" | ")
            entries.append(Entry(fields["Q"].split(" | "), fields.get("E", ""), answers))
    return entries


def unknown(rng: Random, setting: Setting) -> Dialogue:
    """A question that the model cannot answer, for lack of knowledge or of a tool."""
    forms = table("facts")["unknown" if rng.random() < 0.6 else "no_tool"]
    question = fill(rng, pick(rng, forms["ask"], setting.heldout), heldout=setting.heldout)
    return ask(vary(rng, question), rng.choice(forms["answer"]), rng.choice(forms["thought"]))
