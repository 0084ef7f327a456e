"""Recall: exact work on what stands in the prompt, such as repeating, ordering, counting and looking things
up.

Called by `chat`. Invariant: the answer follows from the prompt alone.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from qnext.text.messages import Message

from .coinage import draw_open
from .dialogue import Dialogue, Setting, ask, assistant, user
from .slots import article, draw, fill, first_upper, pick, table, vary, words
from .story import compose_story

_LISTS = ("animal", "thing", "fruit", "color", "name", "food", "city", "weekday", "word")


def make(rng: Random, setting: Setting) -> Dialogue:
    """One task of any kind."""
    kinds: list[Callable[[Random, Setting], Dialogue]] = [
        repeat,
        on_list,
        on_numbers,
        on_word,
        look_up,
        needle,
    ]
    return rng.choices(kinds, (3, 4, 2, 1, 4, 3))[0](rng, setting)


def repeat(rng: Random, setting: Setting) -> Dialogue:
    """The same words again."""
    luck = rng.random()
    if luck < 0.4:
        text = " ".join(draw_open(rng, rng.choice(_LISTS), setting.heldout) for _ in range(rng.randint(1, 6)))
    elif luck < 0.7:
        thing = article(draw(rng, "thing", setting.heldout))
        text = f"The {draw(rng, 'color')} {draw(rng, 'animal', setting.heldout)} has {thing}."
    else:
        text = draw_open(rng, rng.choice(("message", "code", "street", "email")), setting.heldout)
    question = fill(rng, pick(rng, table("recall")["repeat"]["ask"]), {"text": text})
    return ask(question, text, table("recall")["repeat"]["thought"], [text])


def on_list(rng: Random, setting: Setting) -> Dialogue:
    """Reverse a list of words, count it, or find its first, last or next word."""
    kind = rng.choice(("reverse", "first", "last", "after", "count", "member"))
    pool = words(rng.choice(_LISTS if kind != "count" else _LISTS[:1]), setting.heldout)
    pool = pool if len(pool) >= 3 else words("thing")
    items = rng.sample(pool, min(len(pool), rng.randint(3, 7)))
    shown, place = ", ".join(items), rng.randrange(len(items) - 1)
    values = {"items": shown, "other": items[place], "item": items[place + 1]}
    if kind == "reverse":
        answer = ", ".join(items[::-1])
    elif kind == "count":
        answer = f"There are {len(items)} words." if rng.random() < 0.5 else f"{len(items)}."
        thought = "I count: " + ", ".join(f"{number} {item}" for number, item in enumerate(items, 1)) + "."
        question = vary(rng, fill(rng, rng.choice(table("recall")["count"]["ask"]), values))
        return ask(question, answer, thought, [str(len(items))])
    elif kind == "member":
        present = rng.random() < 0.5
        other = items[place] if present else draw(rng, "product", setting.heldout)
        answer = f"Yes, {other} is in the list." if present else f"No, {other} is not in the list."
        question = fill(rng, rng.choice(table("recall")["member"]["ask"]), values | {"other": other})
        thought = f"I look for {other} in the list. It is {'' if present else 'not '}there."
        return ask(question, answer, thought, ["yes" if present else "no"])
    else:
        answer = {"first": items[0], "last": items[-1], "after": items[place + 1]}[kind]
        values["item"] = answer
        if kind == "after":
            answer = rng.choice(
                (f"{first_upper(answer)} comes after {items[place]}.", f"{first_upper(answer)}.")
            )
        elif rng.random() < 0.5:
            answer = f"The {kind} one is {answer}."
    forms = table("recall")[kind]
    must = answer if kind == "reverse" else values["item"]
    return ask(
        fill(rng, rng.choice(forms["ask"]), values), answer, fill(rng, forms["thought"], values), [must]
    )


def on_numbers(rng: Random, setting: Setting) -> Dialogue:
    """Sort numbers or find the biggest or smallest."""
    kind = rng.choice(("sort", "biggest", "smallest"))
    numbers = rng.sample(range(1, 100 if rng.random() < 0.7 else 20), rng.randint(3, 6))
    item = {"sort": 0, "biggest": max(numbers), "smallest": min(numbers)}[kind]
    answer = ", ".join(map(str, sorted(numbers))) if kind == "sort" else f"The {kind} number is {item}."
    values = {"items": ", ".join(map(str, numbers)), "item": item}
    forms = table("recall")[kind]
    question = vary(rng, fill(rng, rng.choice(forms["ask"]), values))
    return ask(
        question, answer, fill(rng, forms["thought"], values), [answer if kind == "sort" else str(item)]
    )


def on_word(rng: Random, setting: Setting) -> Dialogue:
    """Spell a word or name its first letter."""
    word = draw(rng, rng.choice(("animal", "word")), setting.heldout)
    if rng.random() < 0.7:
        answer, kind = ", ".join(word), "spell"
    else:
        answer, kind = f"{first_upper(word)} begins with {word[0].upper()}.", "letter"
    forms = table("recall")[kind]
    values = {"word": word, "item": word[0].upper()}
    question = vary(rng, fill(rng, rng.choice(forms["ask"]), values))
    return ask(
        question, answer, fill(rng, forms["thought"], values), [answer if kind == "spell" else word[0]]
    )


def look_up(rng: Random, setting: Setting) -> Dialogue:
    """Who has what, and what is where, in two to six short sentences."""
    kind = rng.choice(("lookup", "where"))
    forms = table("recall")[kind]
    keys = words("name", setting.heldout) if kind == "lookup" else words("room")
    count = rng.randint(2, 6)
    pairs = list(zip(rng.sample(keys, count), rng.sample(words("thing"), count), strict=True))
    lines = [fill(rng, rng.choice(forms["line"]), {"key": key, "value": value}) for key, value in pairs]
    key, value = rng.choice(pairs)
    values = {"key": key, "value": value}
    back = kind == "lookup" and rng.random() < 0.5
    question = fill(rng, rng.choice(forms["back" if back else "ask"]), values)
    answer = first_upper(fill(rng, rng.choice(forms["reply" if back else "answer"]), values))
    must = key if back or kind == "where" else value
    return ask(f"{' '.join(lines)} {question}", answer, fill(rng, forms["thought"], values), [must])


def needle(rng: Random, setting: Setting) -> Dialogue:
    """A sentence hidden in a story, or in other sentences where there are no stories."""
    return _hidden(rng, setting, lambda: _filler(rng, setting))


def far_needle(
    rng: Random, setting: Setting, length: int, depth: float, measure: Callable[[str], int]
) -> Dialogue:
    """A sentence hidden in stories laid end to end, `length` long in all as `measure` sees it, up to a
    sentence.

    depth: where it hides, from 0 (the text begins with it) to 1 (it ends with it).
    """

    return _hidden(rng, setting, lambda: _long_filler(rng, setting, length, measure), depth)


def far(rng: Random, setting: Setting) -> Dialogue:
    """One to four sentences hidden in 100 to 800 words of stories, and a question for each of them.

    Models that do not think are asked one after another, so that a long text is learned from more than once.
    """
    forms = table("recall")["needle"]
    sentences = _long_filler(rng, setting, rng.randint(100, 800), lambda text: len(text.split()))
    asked, answers, found, musts = [], [], [], []
    for which in rng.sample(range(len(forms["line"])), rng.randint(1, len(forms["line"]))):
        values = {"code": str(rng.randint(10, 9999)), "word": draw_open(rng, "word", setting.heldout)}
        found.append(fill(rng, forms["line"][which], values))
        asked.append(forms["ask"][which])
        answers.append(fill(rng, forms["answer"][which], values))
        musts.append(values["code"] if "{code}" in forms["line"][which] else values["word"])
    for line in found:
        sentences.insert(rng.randint(0, len(sentences)), line)
    if setting.thinking:
        asked, answers, found = [" ".join(asked)], [" ".join(answers)], [" ".join(found)]
    else:
        musts = musts[-1:]
    turns: list[Message] = []
    for question, answer, line in zip(asked, answers, found, strict=True):
        text = question if turns else f"{rng.choice(forms['before'])}\n{' '.join(sentences)}\n{question}"
        turns += [user(text), assistant(answer, fill(rng, forms["thought"], {"found": line}))]
    return Dialogue(tuple(turns), must=tuple(musts), checkable=True)


def _long_filler(rng: Random, setting: Setting, length: int, measure: Callable[[str], int]) -> list[str]:
    """Sentences of stories laid end to end, `length` in all as `measure` sees it, up to a sentence."""
    sentences: list[str] = []
    while length > 0:
        text = rng.choice(setting.stories) if setting.stories else compose_story(rng, setting).text
        for sentence in _sentences(text.replace("\n\n", " ")):
            if length > 0:
                sentences.append(sentence)
                length -= measure(f" {sentence}")
    return sentences


def _hidden(
    rng: Random, setting: Setting, filler: Callable[[], list[str]], depth: float | None = None
) -> Dialogue:
    """The question for a sentence among the filler's; `depth` None draws its place."""
    forms = table("recall")["needle"]
    which = rng.randrange(len(forms["line"]))
    values = {"code": str(rng.randint(10, 9999)), "word": draw_open(rng, "word", setting.heldout)}
    found = fill(rng, forms["line"][which], values)
    sentences = filler()
    place = rng.randint(0, len(sentences)) if depth is None else round(depth * len(sentences))
    sentences.insert(place, found)
    question = f"{rng.choice(forms['before'])}\n{' '.join(sentences)}\n{forms['ask'][which]}"
    thought = fill(rng, forms["thought"], {"found": found})
    must = values["code"] if "{code}" in forms["line"][which] else values["word"]
    return ask(question, fill(rng, forms["answer"][which], values), thought, [must])


def _filler(rng: Random, setting: Setting) -> list[str]:
    if setting.stories:
        paragraph = rng.choice(setting.stories).split("\n\n")[0]
        return _sentences(paragraph)[: rng.randint(2, 12)]
    return [fill(rng, "The {animal} has a {thing}.") for _ in range(rng.randint(2, 12))]


def _sentences(text: str) -> list[str]:
    return text.replace("! ", "!|").replace(". ", ".|").split("|")
