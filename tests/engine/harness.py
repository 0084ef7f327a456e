"""An engine under observation: a tiny network, its plain greedy answers, and a watch that sits in front of
the runner, where it sees every step, checks what must hold, and lets tests act in the middle.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from threading import Condition
from typing import Any

import torch
from torch import Tensor

from qnext.engine.config import EngineConfig
from qnext.engine.engine import Engine
from qnext.engine.plan import Piece, Plan
from qnext.engine.request import Facts, Output, Request, SamplingParams
from qnext.engine.runner import Step
from qnext.engine.sequence import Sequence
from qnext.engine.stream import Stream
from qnext.model.qwen3_next import Qwen3Next
from qnext.model.state import StateSize

from ..model.tiny import VOCABULARY, tiny_model, token_ids

MODEL = tiny_model(initializer_range=0.1)
POISON = VOCABULARY - 1  # a token that no ordinary prompt or answer has
LENGTHS = (1, 2, 3, 5, 8, 17, 33, 63, 64, 65, 66, 90, 128, 129, 150, 200, 4, 30, 70, 140)


@torch.inference_mode()
def continuation(tokens: tuple[int, ...], count: int, model: Qwen3Next = MODEL) -> tuple[int, ...] | None:
    """Greedy tokens by a forward over the whole text, without any cache; None where two scores are so close
    that rounding could decide between them."""
    text = list(tokens)
    for _ in range(count):
        best = model.logits(model(torch.tensor(text, device=model.device))[-1]).topk(2)
        if best.values[0] - best.values[1] < 1e-3 * best.values[0].abs():
            return None
        text.append(int(best.indices[0]))
    return tuple(text[len(tokens) :])


@cache
def greedy(length: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A prompt of `length` tokens, and the 6 to 17 tokens that answer it."""
    for seed in range(100):
        prompt = tuple((token_ids(length, seed=1000 * length + seed) % POISON).tolist())
        answer = continuation(prompt, 6 + length % 12)
        if answer is not None and POISON not in answer:
            return prompt, answer
    raise AssertionError("no prompt has a clear answer")


def request(length: int, **sampling: object) -> Request:
    """The request whose greedy answer `greedy(length)` knows."""
    prompt, answer = greedy(length)
    fields = {"temperature": 0, "max_tokens": len(answer), **sampling}
    return Request(prompt, SamplingParams(**fields))  # type: ignore[arg-type]


def engine(model: Qwen3Next = MODEL, *, pages: int | None = None, **fields: Any) -> Engine:
    """An engine with exactly so many pages, if given; else with ample room."""
    page_size = fields.get("page_size", 16)
    if pages is not None:
        asked = EngineConfig(**fields)
        mtp = asked.drafts > 0 and model.mtp is not None
        size = StateSize.of(model.config, model.embed_tokens.weight.element_size(), asked.drafts, mtp=mtp)
        fields["cache_bytes"] = asked.slots * size.slot + pages * page_size * size.kv_token
    made = Engine(model, EngineConfig(**{"cache_bytes": 16 << 20, **fields}), checkpoint="tiny")
    assert pages is None or made.pages.size == pages
    return made


def at_once(made: Engine) -> Condition:
    """`with at_once(engine): ...` makes all requests and aborts in the block reach the engine together."""
    return made._news


def tokens(stream: Stream) -> list[int]:
    """Read a stream to its end, which must be a good one."""
    read = [(output.token_ids, output.finish_reason) for output in stream]
    assert read[-1][1] in ("stop", "length"), read[-1]
    return [token for ids, _ in read for token in ids]


def whole(stream: Stream) -> Output:
    """Read a stream to its end -> all of it in one output."""
    outputs = list(stream)
    assert [output.finish_reason for output in outputs[:-1]] == [None] * (len(outputs) - 1)
    assert outputs[-1].finish_reason is not None and outputs[-1].facts is not None
    return Output.joined(outputs)


def end(stream: Stream) -> tuple[list[int], str | None]:
    """Read a stream to its end -> its tokens and why it ended."""
    output = whole(stream)
    return list(output.token_ids), output.finish_reason


def taken_in(facts: Facts) -> int:
    """Tokens whose states a sequence had at its end, if nothing was computed twice."""
    return facts.cached_tokens + facts.computed_tokens - facts.drafted_tokens + facts.accepted_tokens


def all_is_free(made: Engine) -> bool:
    """Whether no request is left, and no page and no slot is out, at last."""
    deadline = time.monotonic() + 60
    while made._live and time.monotonic() < deadline:
        time.sleep(0.001)
    return (
        not made._live
        and made.stats().pages_used == 0
        and nothing_lost(made)
        and made.slots.free == made.slots.size
        and not made._scheduler.running
        and not made._scheduler.waiting
    )


def nothing_lost(made: Engine) -> bool:
    """Whether every page that is not free belongs to the prefix cache, and would be free without it."""
    cache = made._steps.cache
    if cache is not None:
        cache.clear()
    spare = made._steps.spare
    return made.pages.free == made.pages.size and spare.free == spare.size


class Watch:
    """Stands in for the runner's `run`. `before(step, pieces)` runs in the engine's thread ahead of each
    step; `after(rows, logits)` may change the scores that are chosen from: a row is a sequence and the number
    of drafts before it.
    """

    def __init__(self, made: Engine) -> None:
        runner, scheduler = made._steps.runner, made._scheduler
        self.engine, self.run, self.scores = made, runner.run, runner.scores
        self.let_in = scheduler._admit
        self.steps = 0
        self.admissions: Counter[Stream] = Counter()
        self.computed: Counter[Stream] = Counter()
        self.before: Callable[[int, list[Piece]], object] = lambda step, pieces: None
        self.after: Callable[[list[tuple[Sequence, int]], Tensor], Tensor] = lambda rows, logits: logits
        self.rows: list[tuple[Sequence, int]] = []
        self.faults: list[BaseException] = []
        runner.run = self  # type: ignore[method-assign, assignment]
        runner.scores = self.judge  # type: ignore[method-assign]
        scheduler._admit = self.admit  # type: ignore[method-assign]

    @property
    def preemptions(self) -> int:
        return sum(self.admissions.values()) - len(self.admissions)

    def admit(self, plan: Plan, sequence: Sequence) -> bool:
        admitted = self.let_in(plan, sequence)
        self.admissions[sequence.stream] += admitted
        return admitted

    def __call__(self, pieces: list[Piece]) -> Step:
        try:
            self.check(pieces)
        except AssertionError as fault:
            self.faults.append(fault)
        for piece in pieces:
            self.computed[piece.sequence.stream] += piece.length
        wholes = [piece for piece in pieces if piece.length == piece.sequence.pending]
        self.rows = [(piece.sequence, j) for piece in wholes for j in range(1 + len(piece.drafts))]
        self.steps += 1
        self.before(self.steps - 1, pieces)
        return self.run(pieces)

    def judge(self, hidden: Tensor) -> Tensor:
        logits, rows, self.rows = self.scores(hidden), self.rows, []
        return self.after(rows, logits) if rows else logits  # none left: it is the MTP head that asks

    def check(self, pieces: list[Piece]) -> None:
        made = self.engine
        running = made._scheduler.running
        assert pieces and {piece.sequence for piece in pieces} <= set(running)
        if not made.config.batch_invariant:
            assert sum(piece.length + len(piece.drafts) for piece in pieces) <= made.config.step_tokens
        held = {page for each in running for page in each.pages}
        assert len(held) == made.stats().pages_used
        assert all(len(set(each.pages)) == len(each.pages) for each in running)
        assert len({each.slot for each in running}) == len(running) == made.slots.size - made.slots.free
