"""LLM: a model in this process, without a server: whole answers, streams of events, batches of prompts.

Used by programs and by `cli`. Invariant: it adds nothing to what the engine and `text` do; the server gives
the same answers to the same requests.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch

from .engine.config import EngineConfig
from .engine.engine import Engine
from .engine.request import Reasoning, Request, SamplingParams, TokenLogprob
from .engine.stream import Stream
from .models import locate
from .text.chat import Chat, Prompt
from .text.events import ContentDelta, Event, Finish, ReasoningDelta, ToolCallDelta
from .text.grammar import GrammarSpec, answer_spec
from .text.messages import Message, Tool, ToolCall
from .text.parser import OutputParser


@dataclass(frozen=True)
class Usage:
    """Tokens of a request. `output_tokens` include `reasoning_tokens`; `cached_tokens` are part of the
    input.
    """

    input_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class Answer:
    """A finished answer. `token_ids` are all the tokens generated, reasoning and end token included."""

    text: str
    reasoning: str
    tool_calls: tuple[ToolCall, ...]
    finish_reason: str
    usage: Usage
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()


class GenerationError(RuntimeError):
    """The engine failed while it was answering; the message says why."""


class LLM:
    """One checkpoint with its engine. `close` it, or use it in a `with` block."""

    def __init__(
        self,
        model: str | Path = "tiny-instruct",
        *,
        engine: EngineConfig | None = None,
        dtype: torch.dtype | None = None,
        device: str = "cpu",
        quantize: str | None = None,
        activations: Literal["int8", "exact"] = "int8",
        kv_cache: Literal["auto", "int8"] = "auto",
    ) -> None:
        """`model` is an embedded model's name or a checkpoint directory; `dtype` None keeps the
        checkpoint's. On a CPU, `quantize` ("int4", "int8") rounds weights while they are read, and inputs of
        quantised weights are rounded to 8 bits unless `activations` is "exact"; `kv_cache` "int8" keeps keys
        and values in 8 bits, in half the memory.
        """
        path = locate(model)
        self.chat_format = Chat.from_pretrained(path)
        self.engine = Engine.from_pretrained(
            path,
            engine,
            dtype=dtype,
            device=device,
            quantize=quantize,
            activations=activations,
            kv_cache=kv_cache,
        )

    def chat(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        sampling: SamplingParams | None = None,
        *,
        tools: Sequence[Tool] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        response_format: Mapping[str, Any] | None = None,
    ) -> Answer:
        """The whole answer to a conversation. Without `sampling`: as the checkpoint recommends.
        `tool_choice` ("auto", "none", "required", or one tool) and `response_format` ("json_object" or
        "json_schema") are OpenAI's objects; what they ask for is made sure of."""
        return self._converse(messages, sampling, tools, tool_choice, response_format).wait()

    def stream(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        sampling: SamplingParams | None = None,
        *,
        tools: Sequence[Tool] | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        response_format: Mapping[str, Any] | None = None,
    ) -> Iterator[Event]:
        """The same answer as events, as they come; the last is a `Finish`. Leaving early ends the request."""
        run = self._converse(messages, sampling, tools, tool_choice, response_format)
        try:
            yield from run
        finally:
            run.stream.abort()

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        sampling: SamplingParams | None = None,
        *,
        structured_outputs: Mapping[str, Any] | None = None,
    ) -> list[Answer]:
        """Raw continuations of prompts given as text or as token ids, computed together: `sampling.n` a
        prompt, in the order of the prompts. `structured_outputs` is vLLM's object: one of `json` (a JSON
        schema), `json_object`, `regex` and `choice` says what each continuation must be."""
        wish = sampling or SamplingParams(**self.recommended)
        spec = answer_spec(structured_outputs=structured_outputs)
        runs = []
        for prompt in prompts:
            encoded = (
                self.chat_format.encode_text(prompt)
                if isinstance(prompt, str)
                else Prompt(tuple(prompt), raw=True)
            )
            for index in range(wish.n):
                seed = None if wish.seed is None else wish.seed + index
                runs.append(self._begin(encoded, replace(wish, n=1, seed=seed), None, spec))
        return [run.wait() for run in runs]

    def close(self) -> None:
        """End the engine; requests in progress are aborted."""
        self.engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def recommended(self) -> dict[str, Any]:
        """The sampling parameters that the checkpoint recommends."""
        return {name: value for name, value in self.chat_format.defaults.items() if name != "max_new_tokens"}

    def _one(self, sampling: SamplingParams | None) -> SamplingParams:
        if sampling is not None and sampling.n != 1:
            raise ValueError(f"n is {sampling.n}: a conversation gets one answer; use generate for more")
        return sampling or SamplingParams(**self.recommended)

    def _converse(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        sampling: SamplingParams | None,
        tools: Sequence[Tool] | None,
        tool_choice: str | Mapping[str, Any] | None,
        response_format: Mapping[str, Any] | None,
    ) -> _Run:
        wish = self._one(sampling)
        offered = None if tool_choice == "none" else tools
        spec = answer_spec(
            response_format=response_format, tools=offered, tool_choice=tool_choice, parallel=True
        )
        return self._begin(self.chat_format.encode(messages, offered), wish, offered, spec)

    def _begin(
        self,
        prompt: Prompt,
        sampling: SamplingParams,
        tools: Sequence[Tool] | None,
        spec: GrammarSpec | None,
    ) -> _Run:
        bounds = self.chat_format.reasoning(prompt)
        request = Request(
            prompt.ids,
            sampling,
            self.chat_format.eos_token_ids,
            Reasoning(*bounds) if bounds else None,
            None if spec is None else self.chat_format.grammar(spec, prompt),
            prompt.boundaries,
        )
        parser = self.chat_format.parser(
            prompt, stop=sampling.stop, tools=tools, stop_token_ids=sampling.stop_token_ids
        )
        return _Run(self.engine.submit(request), parser)


@dataclass
class _Run:
    """One request being answered: the engine's ids, read through the parser."""

    stream: Stream
    parser: OutputParser
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    cached: int = 0

    def __iter__(self) -> Iterator[Event]:
        for output in self.stream:
            if output.error is not None:
                raise GenerationError(output.error)
            self.token_ids += output.token_ids
            self.logprobs += output.logprobs
            self.cached = max(self.cached, output.cached_tokens)
            yield from self.parser.feed(output.token_ids)
            if self.parser.stopped:
                self.stream.abort()
                yield from self.parser.finish("stop")
                return
            if output.finish_reason is not None:
                yield from self.parser.finish(output.finish_reason)

    def wait(self) -> Answer:
        text, reasoning, calls, reason = "", "", [], ""
        for event in self:
            match event:
                case ContentDelta():
                    text += event.text
                case ReasoningDelta():
                    reasoning += event.text
                case ToolCallDelta():
                    calls.append(event.call)
                case Finish():
                    reason = event.reason
        usage = Usage(
            len(self.stream.request.prompt), len(self.token_ids), self.parser.reasoning_tokens, self.cached
        )
        return Answer(
            text, reasoning, tuple(calls), reason, usage, tuple(self.token_ids), tuple(self.logprobs)
        )
