"""The service: the loaded models under their names, and a neutral request turned into neutral events.

Made by `cli` with the loaded models, called by `app`. Invariants: work that grows with a prompt runs in a
thread, not on the event loop, unless the prompt is short; whoever closes the events aborts every stream the
request has in the engine.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Protocol

from qnext.engine.request import MAX_SEED, Grammar, Reasoning, Request
from qnext.engine.stats import Stats
from qnext.engine.stream import Stream
from qnext.text import chat as text
from qnext.text.grammar import GrammarError

from .choice import Choice, Tally, merged
from .errors import at_capacity, invalid, no_model, too_long
from .exchange import ChatEvent, ChatRequest, Conversation, Demand, Prompt, Rules
from .lengths import COUNTED, brief, check_excess, longest, most
from .settings import Settings

Take = Callable[[Demand], Awaitable[Sequence[int]]]
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
# What the hosted service assumes of its models; what a checkpoint recommends goes before it.
_ASSUMED: dict[str, dict[str, float]] = {
    "instruct": {"temperature": 0.7, "top_p": 0.8, "top_k": 20},
    "thinking": {"temperature": 0.6, "top_p": 0.95, "top_k": 20},
    "base": {},
}


class Engine(Protocol):
    """What the service needs of an engine. `submit` raises ValueError for a request that can never fit and
    RuntimeError when the engine takes no more for now."""

    def submit(self, request: Request) -> Stream: ...

    def stats(self) -> Stats: ...


@dataclass(frozen=True)
class Served:
    """One loaded checkpoint. `context_length` is in tokens, `created` in seconds since 1970."""

    name: str
    engine: Engine
    chat: text.Chat
    context_length: int
    created: int


class Service:
    """`models` are found by their own names and by those of the settings' aliases that lead to one of
    them."""

    def __init__(self, models: Mapping[str, Served], settings: Settings) -> None:
        self._settings = settings
        aliases = {name: models[target] for name, target in settings.aliases.items() if target in models}
        self._named = {**aliases, **models}
        self._live = set[Choice]()

    def names(self) -> list[tuple[str, Served]]:
        """Every name that may be asked for, and what answers to it: the models themselves first."""
        return sorted(self._named.items(), key=lambda pair: (pair[0] != pair[1].name, pair[0]))

    def stats(self) -> list[tuple[str, Stats]]:
        """What each engine has done and holds, by its model's own name."""
        return [(name, served.engine.stats()) for name, served in self.names() if name == served.name]

    def end_all(self) -> None:
        """Ends every answer that is being written, since the server is shutting down."""
        for choice in self._live:
            choice.end()

    def find(self, name: str) -> Served:
        """Raises ApiError for a name that nothing answers to."""
        if name not in self._named:
            raise no_model(name)
        return self._named[name]

    def rules(self, name: str) -> Rules:
        served = self.find(name)
        recommended = {key: value for key, value in served.chat.defaults.items() if key in _SAMPLING}
        kind = "thinking" if served.chat.is_thinking else "instruct" if served.chat.has_template else "base"
        return Rules(
            thinking=served.chat.is_thinking,
            template=served.chat.has_template,
            vocab_size=served.chat.tokenizer.vocab_size,
            defaults={"presence_penalty": self._settings.presence_penalty, **_ASSUMED[kind], **recommended},
            max_output=self._settings.max_output_tokens,
            max_thinking=self._settings.max_thinking_tokens,
            thinking_non_stream=self._settings.thinking_non_stream == "allow",
        )

    async def tokenize(self, name: str, prompt: Prompt) -> list[tuple[int, str]]:
        """The tokens the engine would see, as ids and texts."""
        ids, tokenizer = await self.encode(name, prompt), self.find(name).chat.tokenizer

        def spell() -> list[tuple[int, str]]:
            return [(token, tokenizer.token_bytes(token).decode("utf-8", "replace")) for token in ids]

        return await asyncio.to_thread(spell)

    async def encode(
        self, name: str, prompt: Prompt, tools: Sequence[dict[str, object]] = (), *, open_turn: bool = True
    ) -> tuple[int, ...]:
        """The ids the engine would see; with `open_turn` a conversation ends where the next answer begins.
        Raises ApiError when it cannot be rendered or is far longer than any context."""
        served = self.find(name)
        most_counted = max(served.context_length, COUNTED)
        return (await asyncio.to_thread(_encode, served, prompt, tools, most_counted, open_turn)).ids

    async def answer(self, request: ChatRequest, take: Take | None = None) -> AsyncGenerator[ChatEvent, None]:
        """The events of all choices as they come. `take` is told what the request can use at most, and gives
        each answer's longest length, no more than that. Before the first: ApiError when a prompt is too long,
        `take` or the engine refuses or the conversation cannot be rendered; later: ApiError when the engine
        fails."""
        served = self.find(request.model)
        if brief(request):
            prompts, grammars = self._encode_all(served, request)
        else:
            prompts, grammars = await asyncio.to_thread(self._encode_all, served, request)
        choices: list[Choice] = []
        try:
            tally = Tally(sum(len(prompt.ids) for prompt in prompts))
            caps = None if take is None else await self._take(take, served, request, prompts, tally.input)
            for prompt, grammar in zip(prompts, grammars, strict=True):
                for j in range(request.sampling.n):
                    index = len(choices)
                    cap = None if caps is None else caps[index]
                    choices.append(self._start(served, request, prompt, grammar, j, index, tally, cap))
                    self._live.add(choices[-1])
            async with aclosing(merged([choice.events() for choice in choices])) as events:
                async for event in events:
                    yield event
        finally:
            for choice in choices:
                choice.abort()
            self._live.difference_update(choices)

    def _encode_all(
        self, served: Served, request: ChatRequest
    ) -> tuple[list[text.Prompt], list[Grammar | None]]:
        context = self._context(served, request)
        prompts = []
        for asked in request.prompts:
            prompt = _encode(served, asked, request.tools, context)
            if not 1 <= len(prompt.ids) < context:
                raise too_long(len(prompt.ids), context - 1, context)
            prompts.append(prompt)
        spec = request.grammar
        try:
            return prompts, [None if spec is None else served.chat.grammar(spec, each) for each in prompts]
        except GrammarError as error:
            raise invalid(str(error), error.where) from None

    async def _take(
        self, take: Take, served: Served, request: ChatRequest, prompts: Sequence[text.Prompt], tokens: int
    ) -> list[int | None]:
        """The length of each answer where it is shorter than what would hold anyway."""
        sampling, context = request.sampling, self._context(served, request)
        each = [1 if request.silent else most(sampling, served.chat, prompt, context) for prompt in prompts]
        wishes = [wish for wish in each for _ in range(sampling.n)]
        fixed = request.silent or sampling.max_tokens is not None or sampling.max_total_tokens is not None
        granted = await take(Demand(served.name, tokens, tuple(wishes), fixed))
        return [given if given < wish else None for given, wish in zip(granted, wishes, strict=True)]

    def _context(self, served: Served, request: ChatRequest) -> int:
        caps = (self._settings.max_context, request.max_context)
        return min([served.context_length, *(cap for cap in caps if cap is not None)])

    def _start(
        self,
        served: Served,
        request: ChatRequest,
        prompt: text.Prompt,
        grammar: Grammar | None,
        j: int,
        index: int,
        tally: Tally,
        cap: int | None,
    ) -> Choice:
        """Hand answer `j` to `prompt` to the engine; it has at most `cap` tokens, if there is one."""
        chat, sampling = served.chat, request.sampling
        context, total = self._context(served, request), longest(sampling, chat) if cap is None else cap
        if total is not None or context < served.context_length:
            total = min(context - len(prompt.ids), total or context)
        asked = Request(
            prompt.ids,
            replace(
                sampling,
                n=1,
                stop=(),
                max_tokens=1 if request.silent else sampling.max_tokens,
                seed=((sampling.seed or 0) + j) % (MAX_SEED + 1),
                max_total_tokens=total,
            ),
            eos=chat.eos_token_ids,
            reasoning=Reasoning(*closing) if (closing := chat.reasoning(prompt)) else None,
            grammar=grammar,
            boundaries=prompt.boundaries,
            cache_salt=request.salt,
            priority=request.priority,
            routed_experts=request.routed_experts,
            deadline=self._settings.request_timeout,
        )
        try:
            stream = served.engine.submit(asked)
        except ValueError as error:
            raise invalid(str(error)) from None
        except RuntimeError as error:
            raise at_capacity(f"The model takes no more requests for now: {error}") from None
        spelled = tuple(chat.tokenizer.decode(ids, skip_control=False) for ids in request.stop_sequences)
        parser = chat.parser(
            prompt,
            stop=(*sampling.stop, *spelled),
            tools=request.tools,
            max_calls=request.max_calls,
            stop_token_ids=sampling.stop_token_ids,
        )
        return Choice(
            index,
            stream,
            parser,
            chat.tokenizer,
            tally,
            leads=j == 0,
            echo=_echo(served, request, index // sampling.n) if request.echo else None,
            silent=request.silent,
            facts=request.facts or request.routed_experts,
        )


def _encode(
    served: Served,
    prompt: Prompt,
    tools: Sequence[dict[str, object]],
    context: int,
    open_turn: bool = True,
) -> text.Prompt:
    where = "messages" if isinstance(prompt, Conversation) else "prompt"
    try:
        check_excess(prompt, tools, served.chat.tokenizer, context)
        match prompt:
            case Conversation(messages):
                return served.chat.encode(messages, tools or None, add_generation_prompt=open_turn)
            case str():
                return served.chat.encode_text(prompt)
            case _:
                return text.Prompt(prompt, raw=True)
    except ValueError as error:
        raise invalid(str(error), where) from None


def _echo(served: Served, request: ChatRequest, number: int) -> str:
    """The text of a prompt, as it was given or as its token ids spell it, control tokens included."""
    match request.prompts[number]:
        case str(text):
            return text
        case Conversation():
            raise AssertionError("a conversation has no echo")
        case ids:
            return served.chat.tokenizer.decode(ids, skip_control=False)
