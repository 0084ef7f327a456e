"""A choice: one answer being written, from the engine's outputs to neutral events.

Made by `service`, one for each answer of a request. Invariant: tokens are taken one at a time, so usage and
events do not depend on how many tokens the engine gives at once; a choice whose stop string or last call has
come takes no further token.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from qnext.engine.request import Facts, Output, TokenLogprob
from qnext.engine.stream import Stream
from qnext.text.events import ContentDelta, Event, Finish, ReasoningDelta, ToolCallDelta
from qnext.text.parser import OutputParser
from qnext.text.tokenizer import Tokenizer

from .errors import ApiError, internal, stopping, timed_out
from .exchange import Alternative, ChatEvent, Echo, Logprob, Usage

LOWEST_LOGPROB = -9999.0
_LOG = logging.getLogger("qnext.server")


@dataclass
class Tally:
    """Token counts of a whole request, added to by all its choices."""

    input: int
    output: int = 0
    reasoning: int = 0
    cached: int = 0


class Choice:
    """`leads` is true of the first choice of a prompt, whose cached tokens count; with `echo`, a text, the
    first event tells the prompt; a `silent` choice tells nothing else but its end, and counts no token; with
    `facts` the last event tells them, and comes when the engine has ended."""

    def __init__(
        self,
        index: int,
        stream: Stream,
        parser: OutputParser,
        tokenizer: Tokenizer,
        tally: Tally,
        *,
        leads: bool,
        echo: str | None = None,
        silent: bool = False,
        facts: bool = False,
    ) -> None:
        self.index = index
        self.finished = False
        self._stream = stream
        self._parser = parser
        self._tokenizer = tokenizer
        self._tally = tally
        self._prompt, self._wish = stream.request.prompt, stream.request.sampling
        self._leads = leads
        self._echo, self._silent = echo, silent
        self._facts = facts
        self._ended = False
        self._cached = 0
        self._output = 0
        self._logprobs: deque[TokenLogprob] = deque()

    def abort(self) -> None:
        """Stops the engine, unless the answer has ended."""
        if not self.finished:
            self.finished = True
            self._stream.abort()

    def end(self) -> None:
        """Stops the engine; whoever reads the events is told that the server is shutting down."""
        if not self.finished:
            self._stream.abort()

    async def events(self) -> AsyncGenerator[ChatEvent, None]:
        """The events of this answer; the last one has `finish`. Raises ApiError when the engine fails."""
        outputs: AsyncIterator[Output] = aiter(self._stream)
        async for output in outputs:
            for event in self._take(output):
                yield event
            if self._ended:
                return

    def _take(self, output: Output) -> Iterator[ChatEvent]:
        reason = output.finish_reason
        if self._echo is not None and output.token_ids:
            yield self._echoed(output)
        if not self._parser.stopped and not self._silent:
            yield from self._read(output)
        elif self._silent:
            self._count_cached(output.cached_tokens)
            reason = "length" if reason == "stop" else reason
        if self._parser.stopped:
            self.abort()
            if self._facts and reason is None:  # the engine will tell them with its own end
                return
            reason = "stop"
        if reason is None:
            return
        self.finished = self._ended = True
        if reason not in ("stop", "length"):
            raise self._failure(output)
        yield from (self._event(event, output.facts) for event in self._parser.finish(reason))

    def _read(self, output: Output) -> Iterator[ChatEvent]:
        """The events of an output's tokens, up to the one that stops the answer."""
        self._logprobs.extend(output.logprobs)
        self._count_cached(output.cached_tokens)
        for token in output.token_ids:
            before = self._parser.reasoning_tokens
            events = self._parser.feed((token,))
            self._output += 1
            self._tally.output += 1
            self._tally.reasoning += self._parser.reasoning_tokens - before
            yield from map(self._event, events)
            if self._parser.stopped:
                return

    def _count_cached(self, cached: int) -> None:
        if self._leads:
            self._tally.cached += max(cached - self._cached, 0)
        self._cached = max(self._cached, cached)

    def _failure(self, output: Output) -> ApiError:
        if output.timed_out:
            return timed_out()
        if output.finish_reason == "abort":  # by whoever ends all answers; nobody reads those of one who left
            return stopping()
        _LOG.error("the engine ended an answer: %s: %s", output.finish_reason, output.error)
        return internal()

    def _event(self, event: Event, facts: Facts | None = None) -> ChatEvent:
        tally = self._tally
        usage = Usage(tally.input, tally.output, tally.reasoning, tally.cached)
        share = Usage(len(self._prompt), self._output, self._parser.reasoning_tokens, self._cached)
        match event:
            case ContentDelta(text, ids):
                told = self._told(ids) if self._logprobs else ()
                return ChatEvent(self.index, usage, share, content=text, logprobs=told)
            case ReasoningDelta(text):
                return ChatEvent(self.index, usage, share, reasoning=text)
            case ToolCallDelta(call):
                return ChatEvent(self.index, usage, share, call=call)
            case Finish(reason):
                assert reason in ("stop", "length", "tool_calls"), reason
                told_facts = facts if self._facts else None
                return ChatEvent(
                    self.index,
                    usage,
                    share,
                    finish=reason,
                    facts=told_facts,
                    stopped_by=self._parser.stopped_by,
                )

    def _echoed(self, output: Output) -> ChatEvent:
        """The prompt, told once, with the first token's output."""
        text, self._echo = self._echo, None
        assert text is not None
        reports: tuple[Logprob, ...] = ()
        if self._wish.prompt_logprobs is not None:
            raw = self._tokenizer.token_bytes(self._prompt[0])
            reports = (
                Logprob(raw.decode("utf-8", "replace"), raw, None),
                *map(self._report, output.prompt_logprobs),
            )
        usage = Usage(self._tally.input, self._tally.output, self._tally.reasoning, self._tally.cached)
        return ChatEvent(self.index, usage, Usage(len(self._prompt)), echo=Echo(text, reports))

    def _told(self, ids: tuple[int, ...]) -> tuple[Logprob, ...]:
        """The log-probabilities of a content's tokens; those in between that show no content are passed
        over."""
        told = []
        for token in ids:
            while self._logprobs:
                found = self._logprobs.popleft()
                if found.token_id == token:
                    told.append(self._report(found))
                    break
        return tuple(told)

    def _report(self, found: TokenLogprob) -> Logprob:
        top = tuple(self._alternative(*each) for each in found.top)
        chosen = self._alternative(found.token_id, found.logprob)
        return Logprob(chosen.token, chosen.bytes, chosen.logprob, top)

    def _alternative(self, token: int, logprob: float) -> Alternative:
        raw = self._tokenizer.token_bytes(token)
        return Alternative(raw.decode("utf-8", "replace"), raw, max(logprob, LOWEST_LOGPROB))


async def merged(sources: Sequence[AsyncGenerator[ChatEvent, None]]) -> AsyncGenerator[ChatEvent, None]:
    """The events of several answers in the order they come; the first failure ends them all."""
    if len(sources) == 1:
        async with aclosing(sources[0]) as only:
            async for event in only:
                yield event
        return
    queue: asyncio.Queue[ChatEvent | Exception | None] = asyncio.Queue()

    async def pump(source: AsyncGenerator[ChatEvent, None]) -> None:
        try:
            async with aclosing(source):
                async for event in source:
                    queue.put_nowait(event)
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    pumps = [asyncio.ensure_future(pump(source)) for source in sources]
    running = len(pumps)
    try:
        while running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for each in pumps:
            each.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
