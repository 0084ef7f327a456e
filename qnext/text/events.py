"""Events: what a reader learns from an answer, piece by piece.

Made by `parser`, turned into responses by `llm` and the server's dialects. Invariant: an answer is any
number of deltas and then exactly one `Finish`; joining neighbouring deltas of one kind loses nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from .messages import ToolCall

FinishReason = Literal["stop", "length", "tool_calls", "abort", "error"]


@dataclass(frozen=True)
class ReasoningDelta:
    """More reasoning. `token_ids` are the tokens it came from, each attached to one delta only."""

    text: str
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class ContentDelta:
    """More of the answer's text. `token_ids` as for `ReasoningDelta`."""

    text: str
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class ToolCallDelta:
    """A whole call, the `index`-th of the answer. `token_ids` include its tags."""

    call: ToolCall
    index: int
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Finish:
    """The end of the answer."""

    reason: FinishReason


Event = ReasoningDelta | ContentDelta | ToolCallDelta | Finish


def joined(events: Iterable[Event]) -> list[Event]:
    """The same events with neighbouring deltas of one kind made into one."""
    result: list[Event] = []
    for kind, group in groupby(events, type):
        run = list(group)
        if kind is ReasoningDelta or kind is ContentDelta:
            deltas = [e for e in run if isinstance(e, (ReasoningDelta, ContentDelta))]
            ids = tuple(i for delta in deltas for i in delta.token_ids)
            run = [kind("".join(delta.text for delta in deltas), ids)]
        result += run
    return result
