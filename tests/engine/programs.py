"""Random programs for an engine: who comes and goes when, in what room; and what each must be told.

The texts are a little forest: prompts that share beginnings, go on from each other's answers and branch off
in the middle. Every answer is known from a plain loop of whole forwards without any cache.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random

import numpy as np
import torch

from qnext.engine.config import EngineConfig
from qnext.engine.engine import Engine
from qnext.engine.plan import Piece
from qnext.engine.request import Request, SamplingParams
from qnext.engine.sequence import Sequence
from qnext.engine.stream import Stream
from qnext.model.state import StateSize

from ..model.tiny import token_ids
from .harness import MODEL, POISON, Watch, at_once, end, nothing_lost

ANSWER = 12
TEXTS = 48


class EveryOther:
    """A grammar over ids: the parity of each token must differ from that of the text's length."""

    def __init__(self) -> None:
        self.count = 0

    def start(self) -> EveryOther:
        return EveryOther()

    def allowed(self, room: int) -> np.ndarray:
        return np.arange(POISON) % 2 != self.count % 2

    def accept(self, token: int) -> None:
        assert self.allowed(1)[token]
        self.count += 1

    def copy(self) -> EveryOther:
        made = EveryOther()
        made.count = self.count
        return made


@dataclass(frozen=True)
class Text:
    """A prompt with its greedy answer, and the lengths at which its messages begin."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    boundaries: tuple[int, ...]
    bound: bool  # by the grammar

    def request(self, count: int, salt: str) -> Request:
        return Request(
            self.prompt,
            SamplingParams(temperature=0, max_tokens=count),
            grammar=EveryOther() if self.bound else None,
            boundaries=self.boundaries,
            cache_salt=salt,
        )


@torch.inference_mode()
def answer(prompt: tuple[int, ...], *, bound: bool) -> tuple[int, ...] | None:
    """Greedy tokens by whole forwards; None where two scores are too close to call."""
    text, grammar = list(prompt), EveryOther()
    for _ in range(ANSWER):
        scores = MODEL.logits(MODEL(torch.tensor(text))[-1:])[0]
        if bound:
            scores[:POISON][~torch.from_numpy(grammar.allowed(1))] = float("-inf")
            scores[POISON:] = float("-inf")
        best = scores.topk(2)
        if best.values[0] - best.values[1] < 1e-3 * best.values[0].abs():
            return None
        text.append(int(best.indices[0]))
        grammar.count += 1
    return tuple(text[len(prompt) :])


@cache
def forest() -> list[Text]:
    """The texts: each new one begins afresh, goes on from an earlier one, or branches off within it."""
    random, texts = Random(0), list[Text]()
    while len(texts) < TEXTS:
        fresh = tuple(
            (token_ids(random.choice((1, 3, 9, 20, 40)), seed=random.randrange(10**6)) % POISON).tolist()
        )
        old = random.choice(texts) if texts else None
        if old is None or random.random() < 0.2:
            begin: tuple[int, ...] = ()
            marks: tuple[int, ...] = ()
        elif random.random() < 0.6:
            begin = old.prompt + old.answer[: random.choice((ANSWER, ANSWER, 5))]
            marks = (*old.boundaries, len(begin))
        else:
            cut = random.randrange(1, len(old.prompt) + 1)
            begin, marks = old.prompt[:cut], tuple(mark for mark in old.boundaries if mark <= cut)
        prompt, bound = begin + fresh, random.random() < 0.2
        if len(prompt) < 230:
            found = answer(prompt, bound=bound)
            if found is not None and POISON not in found:
                texts.append(Text(prompt, found, marks, bound))
    return texts


@dataclass(frozen=True)
class Guest:
    """A request that comes at a step and wants `count` tokens, and perhaps leaves some steps later."""

    text: Text
    comes: int
    leaves: int | None
    count: int
    salt: str


@dataclass(frozen=True)
class Program:
    """One random life of an engine."""

    guests: tuple[Guest, ...]
    fields: dict[str, object]
    pages: int
    lucky: float  # how often a guess is right
    disk: bool
    seed: int

    @classmethod
    def of(cls, seed: int) -> Program:
        random = Random(seed)
        first = random.choice(forest())
        family = [text for text in forest() if text.prompt[:3] == first.prompt[:3]]
        texts = [*random.sample(forest(), random.choice((0, 3, 8))), *family]
        spread = random.choice((1, 5, 25))
        guests = tuple(
            Guest(
                random.choice(texts),
                random.randrange(spread),
                random.randrange(12) if random.random() < 0.15 else None,
                random.choice((ANSWER, random.randrange(1, ANSWER + 1))),
                random.choice(("", "", "", "another")),
            )
            for _ in range(random.randrange(2, 9))
        )
        page_size = random.choice((1, 3, 4, 16, 64))
        drafts = random.randrange(5)
        fields: dict[str, object] = {
            "page_size": page_size,
            "step_tokens": random.choice((1, 2, 5, 16, 33, 64, 512)),
            "max_sequences": random.choice((1, 2, 4, 8)),
            "draft_tokens": drafts,
            "fixed_drafts": random.random() < 0.7,
            "prefix_cache": random.random() < 0.85,
            "checkpoint_stride": random.choice((7, 50, 2048)),
        }
        some = random.sample(guests, random.randrange(len(guests) // 2, len(guests)) + 1)
        just = sum(len(guest.text.prompt) + drafts + 2 for guest in some)  # they fit, their answers do not
        least = max(len(guest.text.prompt) for guest in guests) + ANSWER + drafts
        cells = max(least, random.choice((just, just, 500, 3000)))
        disk = bool(fields["prefix_cache"]) and random.random() < 0.25
        return cls(guests, fields, -(-cells // page_size), random.choice((0.0, 0.5, 0.9, 1.0)), disk, seed)


class Oracle:
    """Guesses that are right as often as wanted, since the answers are known; made in place of the MTP
    head's own, which still does all its work."""

    def __init__(self, made: Engine, lucky: float, seed: int) -> None:
        self.lucky, self.random = lucky, Random(seed)
        self.answers: dict[Stream, Text] = {}
        drafter = made._steps.guesser._mtp
        if drafter is not None:
            self.draft, drafter.draft = drafter.draft, self  # type: ignore[method-assign, assignment]

    def __call__(self, sequences: list[Sequence], count: int, hidden: torch.Tensor) -> None:
        self.draft(sequences, count, hidden)
        for each in sequences:
            rest = self.answers[each.stream].answer[each.generated :][:count]
            for j, token in enumerate(rest):
                each.drafts[j] = token if self.random.random() < self.lucky else self.random.randrange(POISON)


def run(program: Program, folder: Path) -> str | None:
    """Run a program -> what was wrong, if anything."""
    fields = dict(program.fields)
    if program.disk:
        fields["disk_cache"] = folder
    config = EngineConfig(**fields)  # type: ignore[arg-type]
    size = StateSize.of(MODEL.config, 4, config.drafts, mtp=config.drafts > 0)
    room = config.slots * size.slot + program.pages * config.page_size * size.kv_token
    config = EngineConfig(**{**fields, "cache_bytes": room})  # type: ignore[arg-type]
    for _ in range(2 if program.disk else 1):  # the second life finds on disk what the first has left
        with Engine(MODEL, config, checkpoint="tiny") as made:
            wrong = _live(made, program)
        if wrong:
            return f"program {program.seed}: {wrong}"
    return None


def _live(made: Engine, program: Program) -> str | None:
    watch, oracle = Watch(made), Oracle(made, program.lucky, program.seed)
    expected = deque(sorted(program.guests, key=lambda guest: guest.comes))
    present: list[tuple[Guest, Stream, int]] = []

    def admit(step: int) -> None:
        with at_once(made):
            guest = expected.popleft()
            stream = made.submit(guest.text.request(guest.count, guest.salt))
            oracle.answers[stream] = guest.text
            present.append((guest, stream, step))

    def act(step: int, pieces: list[Piece]) -> None:
        while expected and expected[0].comes <= step:
            admit(step)
        for guest, stream, came in present:
            if guest.leaves is not None and step == came + guest.leaves:
                stream.abort()

    watch.before = act
    read = 0
    while expected or read < len(present):
        if read == len(present):
            admit(watch.steps)  # the engine is idle: the next one comes at once
        guest, stream, _ = present[read]
        found, reason = end(stream)
        wanted = list(guest.text.answer[: guest.count])
        if reason == "abort" and guest.leaves is not None:
            wanted = wanted[: len(found)]
        elif reason != "length":
            return f"guest {read} ended by {reason}"
        if found != wanted:
            return f"guest {read} was told {found}, not {wanted}"
        read += 1
    if made.stats().pages_used or made.stats().slots_used or not nothing_lost(made):
        return f"something is lost: {made.stats()}"
    return str(watch.faults) if watch.faults else None
