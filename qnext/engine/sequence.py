"""A request on its way: its tokens so far, how many of them the caches hold, and why it ends.

Made by `engine`, moved by `scheduler`, extended by `engine` after each step. Invariant: `computed` tokens,
and no others, are in the caches (the last `replays` of them not yet in the recurrent states); `pages` and
`slot` are held exactly while it runs.
"""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass, field

import numpy as np

from .cache import Cursor, Root
from .history import History
from .request import Facts, FinishReason, Matcher, Output, TokenLogprob
from .stream import Stream
from .unread import Unread


@dataclass(eq=False)
class Sequence:
    """`limit` is the most tokens, prompt included, that it may ever hold; `arrival` its place in the queue;
    `stretched` whether YaRN stretches its positions."""

    stream: Stream
    seed: int
    limit: int
    arrival: int = 0
    stretched: bool = False
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    pages: array[int] = field(default_factory=lambda: array("q"))  # numpy reads it as it is
    slot: int | None = None
    replays: int = 0
    drafts: list[int] = field(default_factory=list)  # guesses for the next step
    unread: Unread = field(default_factory=Unread)  # while there is an MTP head
    restored: bool = False  # its last hidden state is still in its slot alone
    blank: int | None = None  # how far the head must not look back, if that is known: see `sight`
    asked: int = 0  # how many guesses were wanted for the next step
    cursor: Cursor | None = None
    marks: list[int] = field(default_factory=list)  # lengths at which a state is to be kept
    kept: int = 0  # the longest text of which a state was kept
    served: int = 0  # the step in which it last had a piece
    suspect: int = 0  # was in a step that failed: runs alone until so many tokens are computed
    tainted: bool = False  # something in it is not finite: nothing of it may be kept
    plain: bool = False  # nothing is guessed for it
    failures: int = 0
    preemptions: int = 0
    reasoning: bool = False
    reasoned: int = 0
    answered: int = 0
    cached: int | None = None
    worked: int = 0
    drafted: int = 0
    accepted: int = 0
    prompt_reports: list[TokenLogprob] = field(default_factory=list)  # of the prompt's tokens after the first
    prompt_told: bool = False  # the reader has them
    routed: list[np.ndarray] = field(default_factory=list)
    times: list[float] = field(default_factory=lambda: [time.monotonic()])  # submitted, admitted, first token

    def __post_init__(self) -> None:
        self.request = self.stream.request
        self.tokens = list(self.request.prompt)
        self.reasoning = self.request.reasoning is not None
        self.rank = (self.request.priority, self.arrival)  # the lower, the sooner
        if self.request.sampling.max_total_tokens is not None:
            self.limit = min(self.limit, len(self.tokens) + self.request.sampling.max_total_tokens)
        self.root: Root = (self.request.cache_salt, self.stretched)
        self.history = History.of(self.request)
        self.matcher: Matcher | None = None if self.request.grammar is None else self.request.grammar.start()

    @property
    def pending(self) -> int:
        """Tokens that the next forward must still take in: the rest of a prompt, or the last token."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.request.prompt)

    @property
    def room(self) -> int:
        """Tokens that it may still be given."""
        room, most = self.limit - len(self.tokens), self.request.sampling.max_tokens
        return room if most is None else min(room, most - self.answered)

    @property
    def reach(self) -> int:
        """How many of its tokens may come from the cache: not all, for the last must be computed, and none
        whose followers' log-probabilities are still wanted."""
        unreported = self.request.sampling.prompt_logprobs is not None and not self.prompt_told
        return len(self.prompt_reports) if unreported else len(self.tokens) - 1

    def admit(self, begin: int, marks: list[int]) -> None:
        """It runs from now on, `begin` tokens were found in the cache."""
        self.computed = self.kept = begin
        self.restored = begin > 0
        self.marks = marks
        if self.cached is None:
            self.cached = begin
            self.times.append(time.monotonic())

    def reset(self) -> None:
        """It holds nothing any more and is computed anew later."""
        self.pages, self.slot, self.computed, self.replays, self.kept = array("q"), None, 0, 0, 0
        self.drafts, self.asked, self.unread = [], 0, Unread()
        self.restored, self.blank = False, None
        self.marks, self.cursor, self.routed = [], None, []

    def extend(self, token: int, logprob: TokenLogprob | None) -> Output:
        """Take in a sampled token (and what must follow it), and say what the reader gets."""
        gives_up = self._gives_up(token)
        finish, cached = None if gives_up else self._append(token), self.cached or 0
        bounds, budget = self.request.reasoning, self.request.sampling.thinking_budget
        if not gives_up and (budget is None or not self.reasoning):
            return Output((token,), () if logprob is None else (logprob,), finish, None, cached)
        gained = [] if gives_up else [token]
        if finish is None and bounds and (gives_up or (budget is not None and self.reasoned >= budget)):
            for forced in bounds.close:
                if finish is None:
                    gained.append(forced)
                    finish = self._append(forced)
        logprobs: tuple[TokenLogprob, ...] = ()
        if logprob is not None:
            # Tokens that were written, not sampled, had no alternative.
            sampled = () if gives_up else (logprob,)
            logprobs = (*sampled, *(TokenLogprob(forced, 0.0) for forced in gained[len(sampled) :]))
        return Output(tuple(gained), logprobs, finish, None, cached)

    def facts(self) -> Facts:
        """How it went, up to now."""
        submitted, *later, now = (*self.times, time.monotonic())
        admitted, first = (*later, now, now)[:2]
        return Facts(
            admitted - submitted,
            first - admitted,
            now - first,
            self.cached or 0,
            self.worked,
            self.drafted,
            self.accepted,
            self.preemptions,
            np.concatenate(self.routed) if self.routed else None,
        )

    def _gives_up(self, token: int) -> bool:
        """Whether the token would end the turn within a thought that a grammar's answer must follow: the
        thought is closed in its place."""
        if not self.reasoning or self.matcher is None:
            return False
        return token in self.request.eos and not self.request.sampling.ignore_eos

    def _append(self, token: int) -> FinishReason | None:
        request, sampling = self.request, self.request.sampling
        if len(self.tokens) == len(request.prompt):
            self.times.append(time.monotonic())
        self.tokens.append(token)
        if self.history is not None:
            self.history.add(token)
        if self.reasoning:
            assert request.reasoning is not None
            if token == request.reasoning.end:
                self.reasoning = False
            else:
                self.reasoned += 1
        else:
            self.answered += 1
            if self.matcher is not None:
                self.matcher.accept(token)
        if token in sampling.stop_token_ids or (token in request.eos and not sampling.ignore_eos):
            return "stop"
        return "length" if self.room <= 0 else None
