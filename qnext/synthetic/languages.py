"""Languages: small talk, numbers, colours and capitals in Portuguese, Spanish, French and Chinese.

Called by `chat`. Invariant: the answer is in the language of the question.
"""

from __future__ import annotations

from random import Random

from .dialogue import Dialogue, Setting, ask
from .slots import fill, first_upper, pick, table

CODES = ("pt", "es", "fr", "zh")
_THOUGHTS = {
    "pt": "A pergunta está em português. Respondo em português.",
    "es": "La pregunta está en español. Respondo en español.",
    "fr": "La question est en français. Je réponds en français.",
    "zh": "用户说中文。我用中文回答。",
}


def make(rng: Random, setting: Setting) -> Dialogue:
    """One exchange in one of the four languages."""
    return make_in(rng, rng.choice(CODES), setting)


def make_in(rng: Random, code: str, setting: Setting) -> Dialogue:
    """One exchange in the language of this code."""
    known = table("languages")[code]
    luck = rng.random()
    if luck < 0.5:
        questions, answers = rng.choice(known["talk"])
        return ask(_hasty(rng, rng.choice(questions)), rng.choice(answers), _THOUGHTS[code])
    if luck < 0.75:
        country, city = pick(rng, known["capitals"].split("; "), setting.heldout).split(": ")
        return _from(rng, code, "capital", {"of": country, "city": city}, city)
    if luck < 0.85:
        thing, of, color = rng.choice(table("languages")["things"][code].split("; ")).split(": ")
        questions = known["color"][0] if of else known["color"][0][:1]
        values = {"thing": thing, "ofthing": of, "Thing": first_upper(thing), "color": color}
        answer = fill(rng, known["color"][1][0], values)
        must = [] if code == "zh" else [color]
        return ask(fill(rng, rng.choice(questions), values), answer, _THOUGHTS[code], must)
    names = known["numbers"].split(", ")
    number = rng.randint(2, len(names))
    comma = "，" if code == "zh" else ", "
    values = {"n": str(number), "word": names[number - 1], "list": first_upper(comma.join(names[:number]))}
    kind = "count" if rng.random() < 0.5 else "number"
    return _from(rng, code, kind, values, values["list" if kind == "count" else "word"])


def greetings(code: str) -> list[str]:
    """All ways to say hello in the language of this code. None of them is held out."""
    return list(table("languages")[code]["talk"][0][0])


def _from(rng: Random, code: str, kind: str, values: dict[str, str], must: str) -> Dialogue:
    questions, answers = table("languages")[code][kind]
    answer = fill(rng, rng.choice(answers), values)
    # Chinese runs its words together: there is no whole word to look for.
    return ask(
        _hasty(rng, fill(rng, rng.choice(questions), values)),
        answer,
        _THOUGHTS[code],
        [] if code == "zh" else [must],
    )


def _hasty(rng: Random, question: str) -> str:
    luck = rng.random()
    return question.rstrip("?!.？。！ ") if luck < 0.1 else question.lower() if luck < 0.2 else question
