"""What fails after the forward: guesses, states that are to be kept, grammars. Only whose it is suffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from qnext.engine.engine import Engine
from qnext.engine.plan import Piece
from qnext.engine.request import Reasoning, Request, SamplingParams
from qnext.engine.sequence import Sequence
from qnext.engine.stream import Stream

from .grammars import Counting
from .harness import Watch, all_is_free, at_once, engine, greedy, request, tokens, whole
from .test_steps import LENGTHS, all_answered

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def failing(made: Engine, name: str, when: Callable[[int, list[Sequence]], bool]) -> list[int]:
    """Make a method of the runner or of the MTP head raise -> how often it did."""
    owner: Any = made._steps.runner if hasattr(made._steps.runner, name) else made._steps.head
    plain, calls, raised = getattr(owner, name), [0], [0]

    def method(first: Any, *rest: Any) -> Any:
        calls[0] += 1
        if when(calls[0] - 1, first if isinstance(first, list) else []):
            raised[0] += 1
            raise RuntimeError(f"{name} fails")
        return plain(first, *rest)

    setattr(owner, name, method)
    return raised


@pytest.mark.parametrize("name", ["absorb", "look_further", "scores", "store", "remember"])
@pytest.mark.parametrize("when", [0, 3])
def test_a_failure_after_the_forward_fails_nobody_if_it_happens_once(name: str, when: int) -> None:
    with engine(fixed_drafts=True) as made:
        raised = failing(made, name, lambda call, sequences: call == when)
        with at_once(made):
            streams = [made.submit(request(length)) for length in LENGTHS]
        all_answered(streams)
        assert raised == [1]
        for length in LENGTHS:  # whatever was kept is right
            assert tokens(made.submit(request(length))) == list(greedy(length)[1])
        assert all_is_free(made)


@pytest.mark.parametrize("name", ["absorb", "look_further"])
def test_a_failure_while_guessing_for_one_fails_that_one_alone(name: str) -> None:
    with engine(fixed_drafts=True) as made:
        watch, victims = Watch(made), set[Stream]()
        failing(made, name, lambda call, sequences: any(each.stream in victims for each in sequences))
        with at_once(made):
            streams = [made.submit(request(length)) for length in LENGTHS]
            victims.add(bad := made.submit(request(90)))
        failed = whole(bad)
        assert failed.finish_reason == "error" and failed.error == f"RuntimeError: {name} fails"
        assert failed.token_ids == greedy(90)[1][: len(failed.token_ids)]
        all_answered(streams)
        assert all_is_free(made) and not watch.faults


def test_a_state_that_could_not_be_written_is_not_found() -> None:
    with engine() as made:
        raised = failing(made, "store", lambda call, sequences: True)
        assert whole(made.submit(request(33))).error == "RuntimeError: store fails" and raised == [1]
        del made._steps.runner.store
        found = whole(made.submit(request(33)))
        assert found.token_ids == greedy(33)[1] and found.cached_tokens == 0
        assert all_is_free(made)


def test_an_abort_whose_work_cannot_be_kept_is_still_an_abort() -> None:
    with engine() as made:
        watch = Watch(made)

        def act(step: int, pieces: list[Piece]) -> None:
            if step == 3:
                failing(made, "store", lambda call, sequences: True)
                victim.abort()

        watch.before = act
        with at_once(made):
            victim = made.submit(request(63, max_tokens=90))
            other = made.submit(request(17, max_tokens=90))
        assert whole(victim).finish_reason == "abort"
        other.abort()
        assert whole(other).finish_reason in ("abort", "error")
        del made._steps.runner.store
        assert tokens(made.submit(request(63))) == list(greedy(63)[1])
        assert all_is_free(made)


@pytest.mark.parametrize("fields", [{}, {"fixed_drafts": True}, {"draft_tokens": 0}], ids=str)
@pytest.mark.parametrize("fails_at", [0, 1, 4])
def test_a_grammar_that_fails_ends_its_request_and_disturbs_nobody(
    fields: dict[str, Any], fails_at: int
) -> None:
    with engine(**fields) as made:
        watch = Watch(made)
        never = torch.zeros(97).index_fill(0, torch.tensor(Counting.END), 1e4)
        watch.after = lambda rows, logits: logits - never
        wish = Request(greedy(30)[0], SamplingParams(temperature=0, max_tokens=9), grammar=Counting(fails_at))
        with at_once(made):
            streams = [made.submit(request(length)) for length in LENGTHS]
            bad = made.submit(wish)
        failed = whole(bad)
        assert failed.error == "RuntimeError: the grammar meets its limits"
        assert failed.token_ids == tuple(range(fails_at))
        all_answered(streams)
        assert set(watch.admissions.values()) == {1}  # nobody had to start over
        assert all_is_free(made)


def test_a_grammar_that_refuses_what_was_written_ends_its_request_alone() -> None:
    """The budget's closing words go on after the end of the reasoning, with what the grammar forbids; in the
    same step another request comes to its end."""
    first = greedy(30)[1]
    close = (90, 50)
    wish = Request(
        greedy(30)[0],
        SamplingParams(temperature=0, max_tokens=20, thinking_budget=4),
        reasoning=Reasoning(90, close),
        grammar=Counting(),
    )
    with engine(draft_tokens=0) as made:
        with at_once(made):
            ending, bad, going = (
                made.submit(request(17, max_tokens=4)),
                made.submit(wish),
                made.submit(request(33)),
            )
        failed = whole(bad)
        assert failed.finish_reason == "error" and failed.token_ids == first[:3]
        assert tokens(ending) == list(greedy(17)[1][:4])
        assert tokens(going) == list(greedy(33)[1])
        assert made.stats().counters.failures == 1
        assert all_is_free(made)
