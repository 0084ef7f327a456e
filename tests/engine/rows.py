"""Sequences and streams without an engine, for tests of what the engine is made of."""

from __future__ import annotations

from collections.abc import Sequence as Ids

from qnext.engine.request import Grammar, Reasoning, Request, SamplingParams
from qnext.engine.sequence import Sequence
from qnext.engine.stream import Stream


def stream(prompt: Ids[int] = (1, 2, 3), sampling: SamplingParams | None = None) -> Stream:
    """A stream that nobody can abort."""
    return Stream(Request(tuple(prompt), sampling or SamplingParams()), lambda stream: None)


def sequence(
    prompt: Ids[int] = (1, 2, 3),
    sampling: SamplingParams | None = None,
    *,
    answer: Ids[int] = (),
    eos: Ids[int] = (),
    reasoning: Reasoning | None = None,
    limit: int = 1000,
    grammar: Grammar | None = None,
) -> Sequence:
    """A sequence that has its answer so far."""
    sampling = sampling or SamplingParams()
    request = Request(tuple(prompt), sampling, tuple(eos), reasoning, grammar=grammar)
    made = Sequence(Stream(request, lambda stream: None), sampling.seed or 0, limit)
    for token in answer:
        made.extend(token, None)
    return made
