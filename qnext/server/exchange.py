"""The neutral exchange: what is asked and what is answered, in no dialect's words.

Dialects (`openai`, `openai_completions`, `dashscope`) make a `ChatRequest` from a body and bytes from
`ChatEvent`s; `service` turns the one into the other. Invariant: the events of a choice, gathered in an
`Answer`, are exactly what the non-streamed answer says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from qnext.engine.request import Facts, SamplingParams
from qnext.text.grammar import GrammarSpec
from qnext.text.messages import Message, ToolCall

from .errors import ApiError

Finish = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Conversation:
    """A prompt that goes through the chat template."""

    messages: tuple[Message, ...]


Prompt = Conversation | str | tuple[int, ...]
"""A conversation, a text to continue as it is, or token ids."""


@dataclass(frozen=True)
class ChatRequest:
    """`sampling` holds a seed, always, and `n` for each prompt: choice `i * n + j` answers prompt `i`.

    `stop_sequences` are further stops, given as token ids. `max_calls` ends the answer after so many tool
    calls. `grammar` is what the answer must look like. `max_context` caps prompt and answer, in tokens. Of
    the requests that wait, those with a lower `priority` go first. With `echo` each answer is preceded by its
    prompt, with log-probabilities if the sampling asks for the prompt's; a `silent` request wants nothing
    else. What is kept of a prompt is found again only by requests of the same `salt`. With `facts` each
    choice ends with the engine's; with `routed_experts` those name the experts too.
    """

    model: str
    prompts: tuple[Prompt, ...]
    sampling: SamplingParams
    stream: bool = False
    stop_sequences: tuple[tuple[int, ...], ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    max_calls: int | None = 1
    grammar: GrammarSpec | None = None
    max_context: int | None = None
    priority: int = 0
    echo: bool = False
    silent: bool = False
    salt: str = ""
    facts: bool = False
    routed_experts: bool = False


@dataclass(frozen=True)
class Rules:
    """What one served model allows and assumes: all a dialect needs to know of it to read a body.

    `defaults` are sampling parameters by name.
    """

    thinking: bool
    template: bool
    vocab_size: int
    defaults: Mapping[str, float]
    max_output: int
    max_thinking: int
    thinking_non_stream: bool = True


@dataclass(frozen=True)
class Demand:
    """The most a request can use, in tokens: its prompts, and each of its answers. `fixed`: the request
    itself said how long an answer may be. `model` is the name of the checkpoint."""

    model: str
    prompt: int
    outputs: tuple[int, ...]
    fixed: bool


@dataclass(frozen=True)
class Usage:
    """Token counts. `output` includes `reasoning` and tags; `cached` is part of `input`."""

    input: int = 0
    output: int = 0
    reasoning: int = 0
    cached: int = 0

    @property
    def total(self) -> int:
        return self.input + self.output


@dataclass(frozen=True)
class Alternative:
    """A token as text and bytes, and its log-probability, never below -9999 (JSON has no infinity); None for
    the first token of a prompt, which follows nothing."""

    token: str
    bytes: bytes
    logprob: float | None


@dataclass(frozen=True)
class Logprob(Alternative):
    """A token of an answer or a prompt, with the likeliest tokens at its place, best first."""

    top: tuple[Alternative, ...] = ()


@dataclass(frozen=True)
class Echo:
    """The prompt of a choice: its text, and its tokens if their log-probabilities were asked for."""

    text: str
    logprobs: tuple[Logprob, ...] = ()


@dataclass(frozen=True)
class ChatEvent:
    """A piece of choice `index`: the prompt's echo, reasoning, content, one whole call, or the end of the
    choice.

    `usage` counts the whole request up to now, `share` the prompt and this choice alone. At the end of a
    choice `stopped_by` is the stop text that ended it, if one did; `facts` are there if they were asked for.
    """

    index: int
    usage: Usage
    share: Usage
    content: str = ""
    reasoning: str = ""
    call: ToolCall | None = None
    logprobs: tuple[Logprob, ...] = ()
    finish: Finish | None = None
    facts: Facts | None = None
    stopped_by: str | None = None
    echo: Echo | None = None


@dataclass
class Part:
    """A stretch of an answer that is all of one kind: reasoning, content with its tokens if they were asked
    for, or a call, which has no text. Its text stays in the pieces it came in: long ones are not copied for
    each."""

    kind: Literal["reasoning", "content", "call"]
    pieces: list[str] = field(default_factory=list)
    call: ToolCall | None = None
    logprobs: list[Logprob] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def is_new(self) -> bool:
        """Whether it began with the last event."""
        return len(self.pieces) < 2


@dataclass
class Choice:
    """One answer as far as it has come. `parts` hold it in the order in which it was written."""

    content: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)
    finish: Finish | None = None
    events: int = 0
    facts: Facts | None = None
    stopped_by: str | None = None
    echo: Echo | None = None
    parts: list[Part] = field(default_factory=list)

    def grow(self, event: ChatEvent) -> None:
        """Adds what an event brings to the last part, or begins another."""
        if event.call is not None:
            self.parts.append(Part("call", call=event.call))
        elif text := event.reasoning or event.content:
            kind: Literal["reasoning", "content"] = "reasoning" if event.reasoning else "content"
            if not self.parts or self.parts[-1].kind != kind:
                self.parts.append(Part(kind))
            self.parts[-1].pieces.append(text)
            self.parts[-1].logprobs += event.logprobs


@dataclass
class Answer:
    """All choices of a request as far as they have come, and the number of events they came in."""

    choices: dict[int, Choice] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    events: int = 0

    def add(self, event: ChatEvent) -> Choice:
        """Takes one event in and returns its choice."""
        choice = self.choices.setdefault(event.index, Choice())
        choice.content += event.content
        choice.reasoning += event.reasoning
        choice.logprobs += event.logprobs
        if event.call is not None:
            choice.calls.append(event.call)
        choice.finish = event.finish or choice.finish
        choice.facts = event.facts or choice.facts
        choice.stopped_by = event.stopped_by or choice.stopped_by
        choice.echo = event.echo or choice.echo
        choice.grow(event)
        choice.events += 1
        self.usage = event.usage
        self.events += 1
        return choice

    def ordered(self) -> list[tuple[int, Choice]]:
        return sorted(self.choices.items())


class Reply(Protocol):
    """How one dialect writes one answer: whole, or event by event. `answer` already holds the event."""

    def body(self, answer: Answer) -> dict[str, Any]: ...

    def frames(self, event: ChatEvent, answer: Answer) -> bytes: ...

    def end(self, answer: Answer) -> bytes: ...

    def failure(self, error: ApiError, answer: Answer) -> bytes: ...
