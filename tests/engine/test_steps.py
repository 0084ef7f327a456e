"""Steps that fail: nobody suffers but the request that made them fail, and nothing wrong is ever kept."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from torch import Tensor

from qnext.engine.plan import Piece
from qnext.engine.request import Request, SamplingParams
from qnext.engine.sequence import Sequence
from qnext.engine.stream import Stream

from .harness import (
    MODEL,
    POISON,
    Watch,
    all_is_free,
    at_once,
    continuation,
    engine,
    greedy,
    request,
    tokens,
    whole,
)

pytestmark = [
    pytest.mark.usefixtures("poisoned_memory"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

LENGTHS = (3, 17, 33, 64)
ROOMS: list[dict[str, Any]] = [
    {},
    {"step_tokens": 16},
    {"step_tokens": 3, "draft_tokens": 0},
    {"prefix_cache": False, "step_tokens": 20},
    {"fixed_drafts": True, "max_sequences": 3},
    {"draft_tokens": 0, "page_size": 3, "step_tokens": 50},
]


def poison(at: int, length: int = 40) -> tuple[int, ...]:
    """A prompt with the poison at this place."""
    rest = greedy(200)[0]
    return (*rest[:at], POISON, *rest[at : length - 1])


def raise_on_poison(step: int, pieces: list[Piece]) -> None:
    for piece in pieces:
        begin = piece.sequence.computed
        if POISON in piece.sequence.request.prompt[begin : begin + piece.length]:
            raise RuntimeError("this token cannot be computed")


def all_answered(streams: list[Stream], lengths: tuple[int, ...] = LENGTHS) -> None:
    assert [tokens(stream) for stream in streams] == [list(greedy(length)[1]) for length in lengths]


@pytest.mark.parametrize("fields,at", [*((fields, 30) for fields in ROOMS), ({}, 0), ({}, 39)], ids=str)
def test_a_token_that_cannot_be_computed_fails_its_own_request_alone(fields: dict[str, Any], at: int) -> None:
    with engine(**fields) as made:
        Watch(made).before = raise_on_poison
        with at_once(made):
            streams = [made.submit(request(length)) for length in LENGTHS[:2]]
            bad = made.submit(Request(poison(at)))
            streams += [made.submit(request(length)) for length in LENGTHS[2:]]
        failed = whole(bad)
        assert (failed.finish_reason, failed.token_ids) == ("error", ())
        assert failed.error == "RuntimeError: this token cannot be computed"
        all_answered(streams)
        assert made.stats().counters.failures == 1
        assert all_is_free(made)


def test_several_such_requests_fail_and_the_others_do_not() -> None:
    with engine(step_tokens=16) as made:
        Watch(made).before = raise_on_poison
        with at_once(made):
            bad = [made.submit(Request(poison(at))) for at in (3, 20, 39)]
            streams = [made.submit(request(length)) for length in LENGTHS]
            bad.append(made.submit(Request(poison(30))))
        assert [whole(stream).finish_reason for stream in bad] == ["error"] * 4
        all_answered(streams)
        assert all_is_free(made)


def test_a_long_answer_outlives_any_number_of_them() -> None:
    with engine(step_tokens=32) as made:
        watch, bad = Watch(made), []  # type: Watch, list[Stream]

        def act(step: int, pieces: list[Piece]) -> None:
            if step % 9 == 4 and len(bad) < 6:
                bad.append(made.submit(Request(poison(35))))
            raise_on_poison(step, pieces)

        watch.before = act
        found = whole(made.submit(request(17, max_tokens=100)))
        assert found.finish_reason == "length"
        assert found.token_ids[: len(greedy(17)[1])] == greedy(17)[1]
        assert len(bad) == 6
        assert [whole(stream).finish_reason for stream in bad] == ["error"] * 6
        assert all_is_free(made)


@pytest.mark.parametrize("fields", [ROOMS[0], ROOMS[1], ROOMS[4]], ids=str)
@pytest.mark.parametrize("error,when", [(RuntimeError("once"), 0), (MemoryError("once"), 3)], ids=repr)
def test_what_happens_once_fails_nobody(fields: dict[str, Any], error: Exception, when: int) -> None:
    with engine(**fields) as made:
        watch = Watch(made)

        def act(step: int, pieces: list[Piece]) -> None:
            if step == when:
                assert len(pieces) > 1
                raise error

        watch.before = act
        with at_once(made):
            streams = [made.submit(request(length)) for length in LENGTHS]
        all_answered(streams)
        assert all_is_free(made)


def test_a_failure_that_only_company_brings_ends_at_last() -> None:
    """No step of two ever works: none goes to and fro for ever, and whoever is told an end has a reason."""
    with engine(step_tokens=16) as made:
        watch = Watch(made)

        def act(step: int, pieces: list[Piece]) -> None:
            if len(pieces) > 1:
                raise MemoryError("too many")

        watch.before = act
        with at_once(made):
            streams = [made.submit(request(length)) for length in (33, 64, 90)]
        for stream, length in zip(streams, (33, 64, 90), strict=True):
            found = whole(stream)
            assert found.token_ids == greedy(length)[1][: len(found.token_ids)]
            assert found.finish_reason == "length" or found.error == "MemoryError: too many"
        assert watch.steps < 40
        assert all_is_free(made)


def healthy_after(fields: dict[str, Any], prompt: tuple[int, ...], sound: int) -> None:
    """With a sick network the prompt fails, and others beside it do not; then the network is healed, and
    answers are right: of the prompt no more than `sound` tokens were kept."""
    model = copy.deepcopy(MODEL)
    weight = model.embed_tokens.weight
    with engine(model, **fields) as made:
        weight[POISON] = float("nan")
        wish = Request(prompt, SamplingParams(temperature=0, max_tokens=6), boundaries=(5, 20, 34, 38))
        with at_once(made):
            bad, *streams = (made.submit(each) for each in (wish, *map(request, LENGTHS)))
        failed = whole(bad)
        assert (failed.finish_reason, failed.token_ids) == ("error", ()) and "not finite" in str(failed.error)
        all_answered(streams)
        weight[POISON] = MODEL.embed_tokens.weight[POISON]
        found = whole(made.submit(wish))
        assert found.token_ids == continuation(prompt, 6) and found.facts is not None
        assert found.facts.cached_tokens <= sound
        again = whole(made.submit(wish))
        assert again.token_ids == found.token_ids and again.facts is not None
        assert (again.facts.cached_tokens >= 38) == ("prefix_cache" not in fields)
        assert all_is_free(made)


@pytest.mark.parametrize("fields,at", [*((fields, 38) for fields in ROOMS), ({}, 0), (ROOMS[1], 30)], ids=str)
def test_nothing_that_is_not_finite_is_found_again(fields: dict[str, Any], at: int) -> None:
    healthy_after(fields, poison(at), at)


def test_scores_that_are_not_finite_leave_sound_states_behind() -> None:
    with engine() as made:
        watch = Watch(made)

        def spoil(rows: list[tuple[Sequence, int]], logits: Tensor) -> Tensor:
            return logits * float("nan") if any(each.generated == 3 for each, _ in rows) else logits

        watch.after = spoil
        failed = whole(made.submit(request(33)))
        assert failed.finish_reason == "error" and failed.token_ids == greedy(33)[1][: len(failed.token_ids)]
        watch.after = lambda rows, logits: logits
        found = whole(made.submit(request(33)))
        assert found.token_ids == greedy(33)[1] and found.facts is not None
        assert found.facts.cached_tokens == 32
        assert all_is_free(made)


def test_a_guess_that_is_not_finite_hurts_nobody() -> None:
    """The poison is guessed, and judged with NaN: it is merely wrong."""
    model = copy.deepcopy(MODEL)
    model.embed_tokens.weight[POISON] = float("nan")
    with engine(model, fixed_drafts=True, draft_tokens=3) as made:
        drafter: Any = made._steps.guesser._mtp
        draft = drafter.draft

        def poisoned(sequences: list[Sequence], count: int, hidden: Tensor) -> None:
            draft(sequences, count, hidden)
            for each in sequences:
                each.drafts[each.generated % 3] = POISON

        drafter.draft, watch = poisoned, Watch(made)
        for _ in range(2):
            with at_once(made):
                streams = [made.submit(request(length)) for length in LENGTHS]
            all_answered(streams)
        assert max(watch.admissions.values()) == 2  # from then on nothing is guessed for it
        assert all_is_free(made)
