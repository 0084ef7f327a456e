"""Dialogue: what a generator of this package makes, a conversation that ends in the answer to be learned.

Every family returns one, `chat` chains them, `train/conversations` turns them into ids, evaluations ask
without the last message and give the model's answer to `check`. Invariant: messages end with an assistant
turn, every assistant turn carries a reasoning, and the last turn itself passes its own `check`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from qnext.text.messages import Message, Tool, ToolCall


@dataclass(frozen=True)
class Setting:
    """What a generator is asked for.

    heldout: draw from the templates and entities that training never sees. thinking: problems may be as hard
    as worked digits allow. stories: real stories to tell and to search things in, may be empty.
    """

    heldout: bool = False
    thinking: bool = False
    stories: Sequence[str] = ()


@dataclass(frozen=True)
class Dialogue:
    """A conversation; `must` are texts the last answer has to contain (whole words, any case)."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    must: tuple[str, ...] = ()
    checkable: bool = field(default=False, kw_only=True)


def user(text: str) -> Message:
    """A user turn."""
    return Message("user", text)


def assistant(text: str, reasoning: str, *calls: tuple[str, dict[str, Any]]) -> Message:
    """An assistant turn; calls are (name, arguments)."""
    made = tuple(
        ToolCall(f"call_{index}", name, json.dumps(arguments, ensure_ascii=False))
        for index, (name, arguments) in enumerate(calls)
    )
    return Message("assistant", text, reasoning, made)


def ask(question: str, answer: str, reasoning: str, must: Sequence[str] = ()) -> Dialogue:
    """One question and its answer."""
    return Dialogue((user(question), assistant(answer, reasoning)), must=tuple(must), checkable=bool(must))


def check(dialogue: Dialogue, answer: str, calls: Sequence[ToolCall]) -> bool:
    """Whether an answer does what the last turn of the dialogue does.

    The same calls in the same order with equal arguments; or no call and every text of `must` in the answer.
    """
    wanted = dialogue.messages[-1].tool_calls
    if [call.name for call in wanted] != [call.name for call in calls]:
        return False
    try:
        same = all(
            json.loads(w.arguments) == json.loads(c.arguments) for w, c in zip(wanted, calls, strict=True)
        )
    except ValueError:
        return False
    return same and all(contains(answer, text) for text in dialogue.must)


def contains(answer: str, text: str) -> bool:
    """Whether `text` stands in `answer` as whole words or a whole number, in any case."""
    return re.search(rf"(?<![\w.]){re.escape(text)}(?!\w|\.\d)", answer, re.I) is not None
