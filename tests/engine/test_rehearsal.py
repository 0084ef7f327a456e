"""A rehearsal leaves nothing behind but what it has learnt, and makes way for whoever comes."""

from __future__ import annotations

from itertools import count
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from qnext.engine import rounds
from qnext.engine.config import EngineConfig
from qnext.engine.pace import TRIALS, Pace
from qnext.engine.rehearsal import LEAST, rehearse
from qnext.engine.runner import Runner
from qnext.engine.stats import Counters
from qnext.engine.steps import Steps

from .harness import MODEL, all_is_free, engine, greedy, request, tokens

SIZES: dict[str, Any] = {"cache_bytes": 16 << 20, "max_sequences": 3}


def rehearsed(until: int = 10**9, **fields: Any) -> tuple[Steps, int]:
    """An engine's steps after a rehearsal of at most so many of them, and how many they were; nothing may be
    left of it."""
    steps, made = Steps(MODEL, EngineConfig(**SIZES | fields), ""), count()
    asked = count(1)
    real = steps.step

    def step() -> Any:
        next(made)
        return real()

    steps.step = step  # type: ignore[method-assign]
    with torch.inference_mode():
        rehearse(steps, alone=lambda: next(asked) <= until)
    stats = steps.stats()
    assert stats.counters == Counters() and not steps.rehearsing
    assert (stats.running, stats.waiting, stats.pages_used, stats.slots_used, stats.pages_kept) == (0,) * 5
    assert steps.spare.free == steps.spare.size and steps.pages.free == steps.pages.size
    return steps, next(made)


def test_afterwards_what_guesses_cost_is_known_and_nothing_of_how_often_they_are_right(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = count()  # on a busy machine it might not be known in time
    monkeypatch.setattr(rounds, "time", SimpleNamespace(perf_counter=lambda: 1e-3 * next(clock)))
    steps, made = rehearsed()
    pace = steps.guesser.rounds.pace
    assert [pace.knows(answers) for answers in (1, 2, 3)] == [True] * 3
    assert (pace.right, pace._judged) == ([0.8] * 3, [0] * 3)
    assert made > 2 * 3 * TRIALS * 2  # of two counts of answers: three are about as many as four or two


@pytest.mark.parametrize("fields", [{"draft_tokens": 0}, {"fixed_drafts": True}, {"batch_invariant": True}])
def test_who_has_nothing_to_learn_is_done_soon(fields: dict[str, Any]) -> None:
    _, made = rehearsed(**fields)
    assert made == 2 * LEAST


def test_who_comes_does_not_wait_for_more_than_a_step() -> None:
    for until in (0, 1, 2, 30):
        steps, made = rehearsed(until)
        assert made == until
    assert not Pace(3).knows(1) and not steps.guesser.rounds.pace.knows(1)


@pytest.mark.parametrize("fields", [{"max_length": 2}, {"max_length": 6}, {"cache_bytes": 700_000}])
def test_texts_that_end_are_followed_by_others(fields: dict[str, Any]) -> None:
    _, made = rehearsed(fixed_drafts=True, **fields)
    assert made == 2 * LEAST


def test_a_model_that_fails_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = count()

    def fail(*_: Any) -> Any:
        next(failed)
        raise MemoryError("too much")

    monkeypatch.setattr(Runner, "run", fail)
    _, made = rehearsed()
    assert made == next(failed) == 1


def test_an_engine_that_has_rehearsed_answers_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    done = Event()

    def rehearse_and_tell(*given: Any, **more: Any) -> None:
        rehearse(*given, **more)
        done.set()

    monkeypatch.setattr("qnext.engine.engine.rehearse", rehearse_and_tell)
    for patient in (False, True):
        with engine(rehearse=True, max_sequences=2) as made:
            assert not patient or done.wait(60)
            streams = [made.submit(request(length)) for length in (17, 33)]
            assert [tokens(stream) for stream in streams] == [list(greedy(length)[1]) for length in (17, 33)]
            assert all_is_free(made)
            assert (made.stats().counters.lengths, made.stats().counters.generated_tokens) == (2, 11 + 15)
        done.clear()


def test_closing_an_engine_ends_its_rehearsal() -> None:
    made = engine(rehearse=True, max_sequences=64)
    made.close()
    assert not made._thread.is_alive() and made.pages.free == made.pages.size
