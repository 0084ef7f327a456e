"""A request, as the engine knows it: token ids in, sampling wishes, token ids out.

Made by `llm` and `server/service`, consumed by `scheduler` and `sampler`. Invariant: nothing here is text; a
`Request` never changes after it is made, what happens to it is kept in the engine's own `Sequence`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import numpy as np

FinishReason = Literal["stop", "length", "abort", "error"]
MAX_SEED = 2**63 - 1


# What a field may be: least, most (infinity and NaN are neither), and how a message says it.
NUMBERS: dict[str, tuple[float, float, str]] = {
    "temperature": (0, sys.float_info.max, "0 (greedy) or more"),
    "top_p": (math.ulp(0.0), 1, "a value in (0, 1]"),
    "min_p": (0, 1, "a value in [0, 1]"),
    "repetition_penalty": (math.ulp(0.0), sys.float_info.max, "more than 0"),
    "presence_penalty": (-2, 2, "a value in [-2, 2]"),
    "frequency_penalty": (-2, 2, "a value in [-2, 2]"),
}
WHOLE_NUMBERS: dict[str, tuple[float, float, str]] = {
    "top_k": (0, math.inf, "0 (off) or more"),
    "seed": (0, MAX_SEED, f"0 to {MAX_SEED}"),
    "max_tokens": (1, math.inf, "1 or more, or leave it out"),
    "max_total_tokens": (1, math.inf, "1 or more, or leave it out"),
    "thinking_budget": (1, math.inf, "1 or more, or leave it out"),
    "logprobs": (0, 20, "0 to 20"),
    "prompt_logprobs": (0, 20, "0 to 20"),
    "n": (1, math.inf, "1 or more"),
}


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


@dataclass(frozen=True)
class SamplingParams:
    """How to choose tokens. Defaults are plain sampling; `None` means "no limit" or "off".

    `temperature` 0 is greedy. `top_k` 0 is off. `logprobs` is the number of alternatives reported for each
    token (0 reports the chosen token alone), `prompt_logprobs` that for the prompt's tokens after the first.
    `max_tokens` counts the answer, after any reasoning; `max_total_tokens` counts both. `stop` holds texts:
    whoever turns ids into text (`LLM`, the server) obeys it, the engine itself obeys `stop_token_ids`. `n`
    answers are drawn, seeded `seed`, `seed + 1`, ...
    Raises ValueError on a value out of range, naming the field.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None
    max_total_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    n: int = 1
    thinking_budget: int | None = None
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        for name in ("stop", "stop_token_ids"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for kinds, table in (((int, float), NUMBERS), ((int,), WHOLE_NUMBERS)):
            for name, (least, most, legal) in table.items():
                value = getattr(self, name)
                if value is None and getattr(type(self), name) is None:
                    continue
                number = isinstance(value, kinds) and not isinstance(value, bool)
                _require(number and least <= value <= most, f"{name} is {value!r}: give {legal}")
        _require(type(self.ignore_eos) is bool, f"ignore_eos is {self.ignore_eos!r}: give true or false")
        _require(all(type(token) is int for token in self.stop_token_ids), "stop_token_ids holds no token id")
        _require(all(isinstance(text, str) and text for text in self.stop), "stop holds an empty text")


@dataclass(frozen=True)
class Reasoning:
    """Says that the prompt has opened a reasoning section, and how it closes.

    `end` is the id of `</think>`. When `thinking_budget` tokens have been spent before it, the ids of `close`
    (which contain `end`) are written instead of sampled ones.
    """

    end: int
    close: tuple[int, ...]


class Matcher(Protocol):
    """A grammar on its way through one answer. It knows accepted tokens only; drafts are for its copies."""

    def allowed(self, room: int) -> np.ndarray:
        """Which ids may come next: bool [V'], V' at most the vocabulary (ids beyond may not). Never all
        False. `room` is how many tokens the answer may still have, this one included: when it is scarce the
        matcher may insist on ending."""
        ...

    def accept(self, token: int) -> None:
        """Take in a token that `allowed` named."""
        ...

    def copy(self) -> Matcher:
        """Another one at the same place, to go its own way."""
        ...


class Grammar(Protocol):
    """What an answer must look like (`text.grammar` makes them). Where the prompt opened reasoning it holds
    from the end of the reasoning on."""

    def start(self) -> Matcher:
        """A matcher at the beginning of an answer; each is used by one thread."""
        ...


@dataclass(frozen=True)
class Request:
    """One answer to one prompt. `prompt` holds token ids; `eos` the ids that end the answer.

    `boundaries` are the prompt's lengths at which other prompts are likely to branch off (where messages
    begin): states are kept there. Only requests of the same `cache_salt` share what is kept. Of the waiting,
    a lower `priority` goes first. A request that has not ended `deadline` seconds after it was submitted
    fails. `routed_experts` asks for the experts that each token went through. Log-probabilities are those of
    the model itself; with `tempered_logprobs` those at the request's temperature.
    """

    prompt: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    eos: tuple[int, ...] = ()
    reasoning: Reasoning | None = None
    grammar: Grammar | None = None
    boundaries: tuple[int, ...] = ()
    cache_salt: str = ""
    priority: int = 0
    deadline: float | None = None
    routed_experts: bool = False
    tempered_logprobs: bool = False


@dataclass(frozen=True)
class TokenLogprob:
    """Log-probability of a token, chosen or of a prompt, and the likeliest `(id, logprob)` pairs, best
    first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Facts:
    """How a request went: seconds waiting, until the first token and after it; prompt tokens found in the
    cache; tokens computed (after a preemption some are computed again); drafts proposed and accepted; and,
    if asked for, experts by computed token, sparse layer and choice: `routed_experts` [tokens, layers, k].
    """

    queue_seconds: float
    prefill_seconds: float
    decode_seconds: float
    cached_tokens: int
    computed_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    preemptions: int
    routed_experts: np.ndarray | None = None


class Output(NamedTuple):
    """What one step gave one request. The last one carries `finish_reason` and `facts`, and `error` if the
    reason is "error"; `timed_out` tells a missed deadline from other errors. `prompt_logprobs`, if asked for,
    come once, with the first token: those of the prompt's second token and of all after it.

    An end-of-answer id is part of `token_ids` (and is counted), so that readers see why it stopped. A named
    tuple, since one is made for every step of every request.
    """

    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    finish_reason: FinishReason | None = None
    error: str | None = None
    cached_tokens: int = 0
    facts: Facts | None = None
    timed_out: bool = False
    prompt_logprobs: tuple[TokenLogprob, ...] = ()

    @classmethod
    def joined(cls, outputs: Sequence[Output]) -> Output:
        """Several outputs in a row as one: the last one's end, and all tokens."""
        if len(outputs) == 1:
            return outputs[0]
        return outputs[-1]._replace(
            token_ids=tuple(token for each in outputs for token in each.token_ids),
            logprobs=tuple(report for each in outputs for report in each.logprobs),
            prompt_logprobs=tuple(report for each in outputs for report in each.prompt_logprobs),
        )
