"""Chat: chains exchanges of all families into conversations; the one entrance to this package.

Called by the mixture and by evaluations. Invariant: the same Random and setting give the same conversation,
and tools stand beside a conversation only where none of them could answer an exchange that is answered in
words.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from qnext.text.messages import Message

from . import arithmetic, copying, facts, languages, manners, recall, story, tools
from .dialogue import Dialogue, Setting
from .slots import table

Family = Callable[[Random, Setting], Dialogue]

# Every family with its share of the conversations, counted by the last exchange.
FAMILIES: dict[str, tuple[Family, float]] = {
    "story": (story.make, 0.16),
    "facts": (facts.make, 0.23),
    "manners": (manners.make, 0.13),
    "memory": (manners.remember, 0.06),
    "arithmetic": (arithmetic.make, 0.11),
    "recall": (recall.make, 0.08),
    "far_recall": (recall.far, 0.01),
    "languages": (languages.make, 0.06),
    "tools": (tools.make, 0.14),
    "no_tool_fits": (tools.without_fit, 0.02),
}
# Answered in words even where tools are at hand; and what may come earlier in a conversation.
_BESIDE_TOOLS = frozenset({"story", "manners", "memory", "arithmetic", "recall", "far_recall", "languages"})
_SMALL_TALK: tuple[Family, ...] = (manners.make, manners.make, facts.capital, facts.plain_words)
_EARLIER: tuple[Family, ...] = (*_SMALL_TALK, facts.small_table, languages.make, arithmetic.make)
# Asked by name only, and by themselves: what a run may drill.
DRILLS: dict[str, Family] = {
    "sums": arithmetic.two_digit_sum,
    "copying": copying.make,
    "spelling": copying.spelling,
}


def compose(rng: Random, setting: Setting, family: str = "") -> Dialogue:
    """A conversation of one to four exchanges; `family` names that of the last one, else it is drawn. A drill
    is one exchange alone."""
    if family in DRILLS:
        return DRILLS[family](rng, setting)
    name = family or rng.choices(list(FAMILIES), [share for _, share in FAMILIES.values()])[0]
    dialogue = FAMILIES[name][0](rng, setting)
    if name == "facts" and rng.random() < 0.2:  # what no tool could tell, with tools beside it
        dialogue = tools.attach(rng, rng.choice((facts.capital, facts.plain_words))(rng, setting))
    elif name in _BESIDE_TOOLS and rng.random() < 0.14:
        dialogue = tools.attach(rng, dialogue)
    turns = _opening(rng, setting, bool(dialogue.tools))
    if rng.random() < 0.25:
        turns.insert(0, Message("system", rng.choice(table("manners")["system"]["prompts"])))
    return Dialogue((*turns, *dialogue.messages), dialogue.tools, dialogue.must, checkable=dialogue.checkable)


def _opening(rng: Random, setting: Setting, beside_tools: bool) -> list[Message]:
    """None to three earlier exchanges; nothing among them that a tool would have to do."""
    families = _SMALL_TALK if beside_tools else _EARLIER
    turns: list[Message] = []
    for _ in range(rng.choices((0, 1, 2, 3), (58, 24, 12, 6))[0]):
        turns += rng.choice(families)(rng, setting).messages
    return turns
