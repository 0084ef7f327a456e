"""Manners: greetings, thanks, who the model is, jokes, kind words, and memory of what the user said.

Called by `chat`. Invariant: what the model says of itself is true: it is Qnext-tiny, small, and can be wrong.
"""

from __future__ import annotations

from random import Random

from qnext.text.messages import Message

from .dialogue import Dialogue, Setting, ask, assistant, user
from .slots import draw, fill, first_upper, pick, share, table, vary


def make(rng: Random, setting: Setting) -> Dialogue:
    """One exchange of small talk; greetings and names come more often than the rest."""
    talks = table("manners")["talk"]
    weights = [6 if index in (0, 3) else 3 if index in (1, 7, 11, 12) else 1 for index in range(len(talks))]
    talk = rng.choices(talks, weights)[0]
    question = vary(rng, pick(rng, talk["say"], setting.heldout))
    return ask(question, rng.choice(talk["answer"]), rng.choice(talk["thought"]))


def greetings(heldout: bool) -> tuple[str, ...]:
    """The trained, or the held-out, ways to say hello in English."""
    return share(table("manners")["talk"][0]["say"], heldout)


def remember(rng: Random, setting: Setting) -> Dialogue:
    """The user tells one or two things and asks for one of them, at once or after some small talk."""
    if rng.random() < 0.1:
        return _never_told(rng, setting)
    told = rng.sample(table("manners")["memory"], rng.choice((1, 1, 2)))
    turns: list[Message] = []
    known: list[dict[str, str]] = []
    for memory in told:
        value = draw(rng, memory["slot"], setting.heldout)
        values = {"v": value, "V": first_upper(value)}
        known.append(values)
        thought = rng.choice(("The user tells me something: {}. I keep it in mind.", "I note this: {}."))
        reply = fill(rng, rng.choice(memory["reply"]), values)
        turns += [
            user(fill(rng, rng.choice(memory["tell"]), values)),
            assistant(reply, thought.format(value)),
        ]
    for _ in range(rng.choice((0, 0, 1))):
        turns += make(rng, setting).messages
    which = rng.randrange(len(told))
    values = known[which]
    question = vary(rng, pick(rng, told[which]["ask"], setting.heldout))
    thought = fill(
        rng, rng.choice(("The user told me this before: {v}.", "I look back. The user said {v}.")), values
    )
    answer = fill(rng, rng.choice(told[which]["answer"]), values)
    turns += [user(question), assistant(answer, thought)]
    return Dialogue(tuple(turns), must=(values["v"],), checkable=True)


def _never_told(rng: Random, setting: Setting) -> Dialogue:
    """The user asks for what was never said: the model says so."""
    memory = rng.choice(table("manners")["memory"])
    question = vary(rng, pick(rng, memory["ask"], setting.heldout))
    answer = rng.choice(("You have not told me that yet.", "I do not know. You have not told me yet.",
                         "You did not tell me that."))  # fmt: skip
    return ask(question, answer, "I look back, but the user has not said it. So I cannot know.")
