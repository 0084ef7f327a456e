"""Subject: what is examined, as four questions that can be put to it.

Made by whoever holds a model: `examinee` for one in this process; a client of a remote endpoint or a test's
fake fit as well. Invariant: nothing here knows how an answer comes about.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from qnext.text.messages import Message, Tool, ToolCall


@dataclass(frozen=True)
class Query:
    """A conversation to answer. `temperature` 0 is greedy, None all that the model recommends; `seed` is for
    the same answer again; reasoning and answer together have at most `max_tokens`."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    temperature: float | None = 0.0
    seed: int = 0
    max_tokens: int = 700


@dataclass(frozen=True)
class Reply:
    """An answer. `tool_calls` are those that could be read, `opened_calls` counts all that were begun;
    `reasoning_closed` is False if the model never left its reasoning."""

    text: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    opened_calls: int = 0
    reasoning_closed: bool = True


@dataclass(frozen=True)
class Subject:
    """`generate` answers a query and may be called from several threads; `score` gives the negative
    log-likelihood of a plain text, in nats, and the number of tokens that it sums over; `count_tokens` the
    tokens of a text. `chats`: it answers conversations; `thinks`: it reasons before it does."""

    name: str
    chats: bool
    thinks: bool
    generate: Callable[[Query], Reply]
    score: Callable[[str], tuple[float, int]]
    count_tokens: Callable[[str], int]
