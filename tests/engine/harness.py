"""An engine under observation: a tiny network, its plain greedy answers, and a watch that sits in front of
the runner, where it sees every step, checks what must hold, and lets tests act in the middle.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from functools import cache
from threading import Condition

import torch
from torch import Tensor

from qnext.engine.config import EngineConfig
from qnext.engine.engine import Engine
from qnext.engine.request import Request, SamplingParams
from qnext.engine.scheduler import Piece
from qnext.engine.stream import Stream
from qnext.model.qwen3_next import Qwen3Next
from qnext.model.state import StateSize

from ..model.tiny import VOCABULARY, tiny_model, token_ids

MODEL = tiny_model(initializer_range=0.1)
POISON = VOCABULARY - 1  # a token that no ordinary prompt or answer has
LENGTHS = (1, 2, 3, 5, 8, 17, 33, 63, 64, 65, 66, 90, 128, 129, 150, 200, 4, 30, 70, 140)


@torch.inference_mode()
def continuation(tokens: tuple[int, ...], count: int) -> tuple[int, ...] | None:
    """Greedy tokens by a forward over the whole text, without any cache; None where two scores are so close
    that rounding could decide between them."""
    text = list(tokens)
    for _ in range(count):
        best = MODEL.logits(MODEL(torch.tensor(text))[-1]).topk(2)
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


def engine(model: Qwen3Next = MODEL, *, pages: int | None = None, **fields: int) -> Engine:
    """An engine with exactly so many pages, if given."""
    page_size, slots = fields.get("page_size", 16), fields.get("max_sequences", 32)
    if pages is not None:
        size = StateSize.of(model.config, model.embed_tokens.weight.element_size())
        fields["cache_bytes"] = slots * (size.delta + size.conv) + pages * page_size * size.kv_token
    made = Engine(model, EngineConfig(**fields))
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


def end(stream: Stream) -> tuple[list[int], str | None]:
    """Read a stream to its end -> its tokens and why it ended."""
    outputs = list(stream)
    assert [output.finish_reason for output in outputs[:-1]] == [None] * (len(outputs) - 1)
    return [token for output in outputs for token in output.token_ids], outputs[-1].finish_reason


def all_is_free(made: Engine) -> bool:
    """Whether no request is left, and no page and no slot is out, at last."""
    deadline = time.monotonic() + 60
    while made._live and time.monotonic() < deadline:
        time.sleep(0.001)
    return (
        not made._live
        and made.pages.free == made.pages.size
        and made.slots.free == made.slots.size
        and not made._scheduler.running
        and not made._scheduler.waiting
    )


class Watch:
    """Stands in for the runner's `run`. `before(step, pieces)` runs in the engine's thread ahead of each
    step; `after(pieces, logits)` may change the scores.
    """

    def __init__(self, made: Engine) -> None:
        self.engine, self.run = made, made._runner.run
        self.steps = 0
        self.admissions: Counter[Stream] = Counter()
        self.computed: Counter[Stream] = Counter()
        self.before: Callable[[int, list[Piece]], object] = lambda step, pieces: None
        self.after: Callable[[list[Piece], Tensor], Tensor] = lambda pieces, logits: logits
        self.faults: list[BaseException] = []
        made._runner.run = self  # type: ignore[method-assign, assignment]

    @property
    def preemptions(self) -> int:
        return sum(self.admissions.values()) - len(self.admissions)

    def __call__(self, pieces: list[Piece]) -> Tensor:
        try:
            self.check(pieces)
        except AssertionError as fault:
            self.faults.append(fault)
        for piece in pieces:
            self.admissions[piece.sequence.stream] += piece.sequence.computed == 0
            self.computed[piece.sequence.stream] += piece.length
        self.steps += 1
        self.before(self.steps - 1, pieces)
        return self.after(pieces, self.run(pieces))

    def check(self, pieces: list[Piece]) -> None:
        made = self.engine
        running = made._scheduler.running
        assert pieces and {piece.sequence for piece in pieces} <= set(running)
        assert sum(piece.length for piece in pieces) <= made.config.step_tokens
        held = [page for each in running for page in each.pages]
        assert len(set(held)) == len(held) == made.pages.size - made.pages.free
        assert len({each.slot for each in running}) == len(running) == made.slots.size - made.slots.free
