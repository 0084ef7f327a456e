"""A request on its way: its tokens so far, how many of them the caches hold, and why it ends.

Made by `engine`, moved by `scheduler`, extended by `engine` after each step. Invariant: `computed` tokens,
and no others, are in the caches; `pages` and `slot` are held exactly while it runs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from .request import FinishReason, Output, TokenLogprob
from .stream import Stream


@dataclass(eq=False)
class Sequence:
    """`limit` is the most tokens, prompt included, that it may ever hold."""

    stream: Stream
    seed: int
    limit: int
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    pages: list[int] = field(default_factory=list)
    slot: int | None = None
    reasoning: bool = False
    reasoned: int = 0
    answered: int = 0
    counts: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.request = self.stream.request
        self.tokens = list(self.request.prompt)
        self.reasoning = self.request.reasoning is not None

    @property
    def pending(self) -> int:
        """Tokens that the next forward must still take in: the rest of a prompt, or the last token."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.request.prompt)

    def extend(self, token: int, logprob: TokenLogprob | None) -> Output:
        """Take in a sampled token (and what must follow it), and say what the reader gets."""
        gained = [token]
        finish = self._append(token)
        sampling, bounds = self.request.sampling, self.request.reasoning
        budget = sampling.thinking_budget
        if finish is None and self.reasoning and bounds and budget is not None and self.reasoned >= budget:
            for forced in bounds.close:
                if finish is None:
                    gained.append(forced)
                    finish = self._append(forced)
        logprobs: tuple[TokenLogprob, ...] = ()
        if logprob is not None:
            # Tokens that were written, not sampled, had no alternative.
            logprobs = (logprob, *(TokenLogprob(forced, 0.0) for forced in gained[1:]))
        return Output(tuple(gained), logprobs, finish)

    def _append(self, token: int) -> FinishReason | None:
        request, sampling = self.request, self.request.sampling
        self.tokens.append(token)
        self.counts[token] += 1
        if self.reasoning:
            assert request.reasoning is not None
            if token == request.reasoning.end:
                self.reasoning = False
            else:
                self.reasoned += 1
        else:
            self.answered += 1
        if token in sampling.stop_token_ids or (token in request.eos and not sampling.ignore_eos):
            return "stop"
        if sampling.max_tokens is not None and self.answered >= sampling.max_tokens:
            return "length"
        if sampling.max_total_tokens is not None and self.generated >= sampling.max_total_tokens:
            return "length"
        return "length" if len(self.tokens) >= self.limit else None
