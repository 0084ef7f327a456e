"""Arithmetic: sums, differences and products, plain or in a little story, with the digits worked out in the
thought.

Called by `chat`. Invariant: every number in a worked thought and in its answer is right.
"""

from __future__ import annotations

from random import Random

from .dialogue import Dialogue, Setting, ask
from .slots import draw, fill, pick, table, vary

_SIGNS = {"plus": "+", "minus": "-", "times": "x"}


def make(rng: Random, setting: Setting) -> Dialogue:
    """One problem; the harder ones only where the model may think first."""
    luck = rng.random()
    if luck < 0.62:
        return plain(rng, setting)
    if luck < 0.85:
        return problem(rng, setting)
    return about_numbers(rng, setting)


def plain(rng: Random, setting: Setting) -> Dialogue:
    """ "What is 23 + 45?" """
    kind = rng.choices(("plus", "minus", "times"), (5, 3, 2))[0]
    a, b = _numbers(rng, kind, setting)
    values = {"a": a, "b": b}
    question = fill(rng, pick(rng, table("arithmetic")["forms"][kind], setting.heldout), values)
    thought, result = work(kind, a, b)
    shown = f"{a} {_SIGNS[kind]} {b}"
    answer = rng.choice(
        (
            f"{shown} = {result}.",
            f"{shown} = {result}.",
            f"{shown} = {result}.",
            f"The answer is {result}.",
            f"{shown} is {result}.",
        )
    )
    return ask(vary(rng, question), answer, thought, [str(result)])


def two_digit_sum(rng: Random, setting: Setting) -> Dialogue:
    """ "What is 23 + 45?", both numbers of two digits: the measure of whether a model can add."""
    while True:
        a, b = rng.randint(10, 99), rng.randint(10, 99)
        if _kept_back(a, b) == setting.heldout:
            break
    question = fill(rng, pick(rng, table("arithmetic")["forms"]["plus"], setting.heldout), {"a": a, "b": b})
    thought, result = work("plus", a, b)
    return ask(question, f"{a} + {b} = {result}.", thought, [str(result)])


def problem(rng: Random, setting: Setting) -> Dialogue:
    """A story of one step, or of two where the model may think first."""
    made = rng.choice(table("arithmetic")["problem"])
    kind = made["kind"]
    a, b = _numbers(rng, kind, setting, largest=2)
    a, b = max(a, 2), max(b, 2)
    if b > a and kind == "minus":
        a, b = b, a
    which = rng.randrange(len(made["text"]))
    names = rng.sample(["N", "M"], 2)
    first = draw(rng, "name", setting.heldout)
    second = draw(rng, "name", setting.heldout)
    while second == first:
        second = draw(rng, "name", setting.heldout)
    things = rng.choice(table("arithmetic")["other"]["things"].split(", "))
    thought, result = work(kind, a, b)
    values = {"a": a, "b": b, "r": result, "things": things, **dict(zip(names, (first, second), strict=True))}
    verb = {"plus": "add", "minus": "subtract", "times": "multiply"}[kind]
    return ask(fill(rng, made["text"][which], values), fill(rng, made["answer"][which], values),
               f"I have to {verb} {a} and {b}. {thought}", [str(result)])  # fmt: skip


def about_numbers(rng: Random, setting: Setting) -> Dialogue:
    """Bigger, next, even or odd, counting."""
    forms = table("arithmetic")["other"]
    kind = rng.choice(("compare", "after", "before", "even", "count", "countto"))
    a, b = rng.randint(1, 99), rng.randint(1, 99)
    if kind in ("count", "countto"):
        a = rng.randint(1, 20) if kind == "count" else 1
        b = a + rng.randint(2, 14)
    b += a == b
    question = vary(rng, fill(rng, rng.choice(forms[kind]), {"a": a, "b": b}))
    if kind == "compare":
        big, small = max(a, b), min(a, b)
        answer = f"{big} is bigger than {small}."
        if question.lower().startswith("is "):
            answer = ("Yes, " if a > b else "No, ") + answer
        return ask(question, answer, f"I compare {a} and {b}. {big} is bigger.", [str(big)])
    if kind in ("after", "before"):
        result = a + 1 if kind == "after" else a - 1
        return ask(
            question,
            f"{result} comes {kind} {a}.",
            f"{a} {'+' if kind == 'after' else '-'} 1 = {result}.",
            [str(result)],
        )
    if kind == "even":
        word = "odd" if a % 2 else "even"
        return ask(
            question, f"{a} is {word}.", f"The last digit of {a} is {a % 10}. So it is {word}.", [word]
        )
    numbers = ", ".join(str(number) for number in range(a, b + 1))
    return ask(question, f"{numbers}.", f"I count from {a} to {b}, one by one.", [numbers])


def _numbers(rng: Random, kind: str, setting: Setting, largest: int = 3) -> tuple[int, int]:
    """Two numbers of the size this setting allows; a pair is held out by its value."""
    while True:
        if kind == "times":
            a, b = (
                rng.randint(2, 99 if setting.thinking else 10),
                rng.randint(2, 9 if setting.thinking else 10),
            )
        else:
            digits = (1, 1, 2, 2, 2, 3) if setting.thinking and largest > 2 else (1, 1, 2, 2)
            a, b = (
                rng.randint(0, 9) if d == 1 else rng.randint(10 ** (d - 1), 10**d - 1)
                for d in rng.choices(digits, k=2)
            )
            if kind == "minus" and a < b and rng.random() < 0.9:
                a, b = b, a
        if _kept_back(a, b) == setting.heldout:
            return a, b


def _kept_back(a: int, b: int) -> bool:
    """Whether training never sees this pair, in this order."""
    return (a * 31 + b * 17) % 10 == 3


def work(kind: str, a: int, b: int) -> tuple[str, int]:
    """The thought that works a problem out digit by digit, and its result."""
    if kind == "plus":
        return _add(a, b)
    if kind == "times":
        return _multiply(a, b)
    if a < b:
        thought, result = _subtract(b, a)
        return (
            f"{a} is smaller than {b}, so the result is negative. {thought} So {a} - {b} = -{result}.",
            -result,
        )
    return _subtract(a, b)


def _digits(number: int, count: int) -> list[int]:
    return [number // 10**place % 10 for place in range(count)]


def _add(a: int, b: int) -> tuple[str, int]:
    places = max(len(str(a)), len(str(b)))
    if places == 1:
        return f"{a} + {b} = {a + b}.", a + b
    steps, carry = [], 0
    for x, y in zip(_digits(a, places), _digits(b, places), strict=True):
        total = x + y + carry
        shown = f"{x} + {y}" + (" + 1" if carry else "")
        steps.append(f"{shown} = {total}, write {total % 10}" + (", carry 1." if total > 9 else "."))
        carry = total // 10
    if carry:
        steps.append("Write the carried 1.")
    return f"I add from the right. {' '.join(steps)} The sum is {a + b}.", a + b


def _subtract(a: int, b: int) -> tuple[str, int]:
    places = len(str(a))
    if places == 1:
        return f"{a} - {b} = {a - b}.", a - b
    steps, borrow = [], 0
    for x, y in zip(_digits(a, places), _digits(b, places), strict=True):
        left = f"{x} - 1" if borrow else f"{x}"
        value = x - borrow - y
        if value < 0:
            steps.append(f"{left} - {y} is too small, so {10 + x - borrow} - {y} = {value + 10}, borrow 1.")
        else:
            steps.append(f"{left} - {y} = {value}.")
        borrow = int(value < 0)
    return f"I subtract from the right. {' '.join(steps)} The result is {a - b}.", a - b


def _multiply(a: int, b: int) -> tuple[str, int]:
    if a < 10 or b > 9:
        return f"{a} x {b} = {a * b}.", a * b
    tens, ones = a // 10 * 10, a % 10
    if not ones:
        return f"{a // 10} x {b} = {a // 10 * b}, so {a} x {b} = {a * b}.", a * b
    first, second = tens * b, ones * b
    return f"{tens} x {b} = {first}. {ones} x {b} = {second}. {first} + {second} = {a * b}.", a * b
