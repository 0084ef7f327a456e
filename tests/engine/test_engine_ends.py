"""However a request ends, its places are free again, its reader is told once, and the others go on."""

from __future__ import annotations

import copy
from threading import Event, Thread
from typing import Any

import pytest
import torch
from torch import Tensor

from qnext.engine.engine import Engine, EngineClosed, EngineFull
from qnext.engine.plan import Piece
from qnext.engine.request import Request, SamplingParams
from qnext.engine.sequence import Sequence
from qnext.engine.stream import Stream

from .harness import MODEL, POISON, Watch, all_is_free, at_once, end, engine, greedy, request, tokens, whole

pytestmark = pytest.mark.usefixtures("poisoned_memory")

ENDLESS = SamplingParams(temperature=0, ignore_eos=True)


def abort_in(watch: Watch, when: int, stream: Stream) -> None:
    """Abort a stream in the middle of step `when`."""

    def act(step: int, pieces: list[Piece]) -> None:
        if step == when:
            stream.abort()

    watch.before = act


def test_abort_while_answering() -> None:
    with engine(draft_tokens=0) as made:
        watch = Watch(made)
        with at_once(made):
            victim, other = made.submit(Request(greedy(33)[0], ENDLESS)), made.submit(request(30))
            abort_in(watch, 6, victim)
        found, reason = end(victim)
        assert reason == "abort"
        assert found == list(greedy(33)[1][:7])  # the step under way is still told, none after it
        assert tokens(other) == list(greedy(30)[1])
        assert all_is_free(made) and not watch.faults


def test_abort_in_the_middle_of_a_prompt() -> None:
    with engine(step_tokens=16) as made:
        watch = Watch(made)
        with at_once(made):
            victim, other = made.submit(Request(greedy(200)[0], ENDLESS)), made.submit(request(30))
            abort_in(watch, 3, victim)
        assert end(victim) == ([], "abort")
        assert watch.computed[victim] == 4 * 16
        assert tokens(other) == list(greedy(30)[1])
        assert all_is_free(made) and not watch.faults


def test_abort_while_waiting() -> None:
    with engine(max_sequences=1) as made:
        watch = Watch(made)
        with at_once(made):
            running, victim, last = (made.submit(request(length)) for length in (33, 17, 30))
            abort_in(watch, 3, victim)
        assert end(victim) == ([], "abort") and victim not in watch.computed
        assert tokens(running) == list(greedy(33)[1]) and tokens(last) == list(greedy(30)[1])
        assert all_is_free(made)


def test_abort_after_giving_way() -> None:
    """A sequence that was preempted holds nothing, and is not computed again once aborted."""
    with engine(pages=14, page_size=16, max_sequences=4, step_tokens=300) as made:
        watch, asked = Watch(made), []  # type: Watch, list[Stream]

        def act(step: int, pieces: list[Piece]) -> None:
            for each in made._scheduler.waiting:
                if each.generated and not asked:
                    asked.append(each.stream)
                    each.stream.abort()

        watch.before = act
        with at_once(made):
            wishes = [request(length, max_tokens=None, max_total_tokens=100) for length in (30, 33, 63)]
            streams = [made.submit(wish) for wish in wishes]
        ends = {stream: end(stream) for stream in streams}
        assert len(asked) == 1 and ends[asked[0]][1] == "abort"
        assert watch.admissions[asked[0]] == 1
        assert [len(found) for found, reason in ends.values() if reason == "length"] == [100, 100]
        assert all_is_free(made) and not watch.faults


def test_abort_of_an_ended_request_changes_nothing() -> None:
    with engine() as made:
        stream = made.submit(request(8))
        assert tokens(stream) == list(greedy(8)[1])
        stream.abort()
        stream.abort()
        assert tokens(made.submit(request(17))) == list(greedy(17)[1])
        assert list(stream) == [] and all_is_free(made)


def test_a_failing_step_ends_who_was_alone_in_it(caplog: pytest.LogCaptureFixture) -> None:
    with engine(max_sequences=1) as made:
        watch = Watch(made)

        def act(step: int, pieces: list[Piece]) -> None:
            if step == 4:
                raise MemoryError("no room for activations")

        watch.before = act
        with at_once(made):
            streams = [made.submit(request(length)) for length in (33, 17, 8)]
        first, *others = [whole(stream) for stream in streams]
        assert (first.finish_reason, first.error) == ("error", "MemoryError: no room for activations")
        assert len(first.token_ids) >= 4 and first.token_ids == greedy(33)[1][: len(first.token_ids)]
        assert [each.token_ids for each in others] == [greedy(17)[1], greedy(8)[1]]
        assert made.stats().counters.failures == 1
        assert all_is_free(made)
    assert "a step of 1 requests failed" in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_end_their_sequence_alone(value: float) -> None:
    with engine() as made:
        watch = Watch(made)

        def spoil(rows: list[tuple[Sequence, int]], logits: Tensor) -> Tensor:
            for row, (sequence, ahead) in enumerate(rows):
                if sequence.stream is victim and sequence.generated + ahead == 3:
                    logits = logits.clone()
                    logits[row, 5] = value
            return logits

        watch.after = spoil
        with at_once(made):
            others = [made.submit(request(length)) for length in (17, 30)]
            victim = made.submit(request(33))
            others.append(made.submit(request(63)))
        *told, last = victim
        assert [token for output in told for token in output.token_ids] == list(greedy(33)[1][:3])
        assert last.finish_reason == "error" and last.error is not None and "not finite" in last.error
        for stream, length in zip(others, (17, 30, 63), strict=True):
            assert tokens(stream) == list(greedy(length)[1])
        assert all_is_free(made)


def test_a_failure_after_one_has_ended_does_not_end_it_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(guessing: list[Sequence], others: list[Sequence]) -> Tensor:
        raise RuntimeError("the head fails")

    with engine() as made:
        watch = Watch(made)
        watch.after = lambda rows, logits: torch.cat((logits[:1] * float("nan"), logits[1:]))
        monkeypatch.setattr(made._steps.head, "absorb", failing)
        with at_once(made):
            first, second = made.submit(request(8)), made.submit(request(17))
        found = [[output.error for output in stream] for stream in (first, second)]
        assert found[0] == ["the model gave scores that are not finite"]
        assert found[1][:-1] == [None] and "not finite" in str(found[1][-1])  # it is alone by now
        assert all_is_free(made)
        assert first._outputs.qsize() == second._outputs.qsize() == 1  # the mark of the end


def test_forbidden_tokens_are_not_an_error() -> None:
    with engine() as made:
        watch = Watch(made)
        watch.after = lambda rows, logits: torch.full_like(logits, float("-inf")).index_fill(
            1, torch.tensor([7]), 1.0
        )
        assert tokens(made.submit(request(8, max_tokens=3))) == [7, 7, 7]
        assert tokens(made.submit(request(8, max_tokens=3, temperature=1.0))) == [7, 7, 7]


def test_nan_within_the_network_stays_with_its_sequence() -> None:
    """One token's embedding is NaN: its sequence fails; pages and slots it used serve others unharmed."""
    model = copy.deepcopy(MODEL)
    model.embed_tokens.weight[POISON] = float("nan")
    bad = Request((*greedy(33)[0], POISON, 1, 2), ENDLESS)
    with engine(model, pages=20, page_size=16, max_sequences=2, step_tokens=64) as made:
        with at_once(made):
            streams = [made.submit(each) for each in (bad, request(30), bad, request(150), request(63), bad)]
        ends = [end(stream) for stream in streams]
        assert [reason for _, reason in ends] == ["error", "length", "error", "length", "length", "error"]
        for (found, _), length in zip((ends[1], ends[3], ends[4]), (30, 150, 63), strict=True):
            assert found == list(greedy(length)[1])
        assert all_is_free(made)


def test_close_ends_what_is_left() -> None:
    made = engine(max_sequences=2)
    watch, started = Watch(made), Event()
    watch.before = lambda step, pieces: started.set()
    streams = [made.submit(Request(greedy(33)[0], ENDLESS)) for _ in range(5)]
    readers: list[tuple[list[int], str | None]] = []
    thread = Thread(target=lambda: readers.append(end(streams[0])))
    thread.start()
    assert started.wait(60)
    made.close()
    made.close()
    thread.join(60)
    assert not thread.is_alive()
    assert [reason for _, reason in (*readers, *map(end, streams[1:]))] == ["abort"] * 5
    assert all_is_free(made)
    with pytest.raises(EngineClosed):
        made.submit(request(8))


def test_close_without_any_request() -> None:
    with engine() as made:
        pass
    assert not made._thread.is_alive()


def test_readers_that_stop_reading_hold_nothing_up() -> None:
    with engine(max_sequences=2) as made:
        dropped = [made.submit(request(length)) for length in (17, 30, 33)]
        next(iter(dropped[0]))
        stream = made.submit(request(63))
        del dropped
        assert tokens(stream) == list(greedy(63)[1])
        assert all_is_free(made)


REFUSED: list[tuple[tuple[Any, ...], str]] = [
    ((), "the prompt is empty"),
    ((1,) * 48, "the prompt has 48 tokens: at most 47"),
    ((1, 97), "token id outside 0 to 96"),
    ((-1,), "token id outside"),
    ((1, 2.5), "token id outside"),
    ((True, 2), "token id outside"),
    (("a",), "token id outside"),
]


@pytest.mark.parametrize("prompt,message", REFUSED, ids=str)
def test_what_can_never_run_is_refused(prompt: tuple[Any, ...], message: str) -> None:
    with engine(pages=3, page_size=16, max_sequences=2, draft_tokens=0) as made:
        assert made.max_length == 48
        with pytest.raises(ValueError, match=message):
            made.submit(Request(prompt, ENDLESS))
        assert all_is_free(made)
        found, reason = end(made.submit(Request(greedy(33)[0], ENDLESS)))
        assert (len(found), reason) == (48 - 33, "length")


def test_a_full_queue_is_refused_and_drains() -> None:
    with engine(max_sequences=1, max_waiting=2) as made:
        watch, go = Watch(made), Event()
        watch.before = lambda step, pieces: go.wait(60)
        streams = [made.submit(request(length)) for length in (8, 17, 30)]
        with pytest.raises(EngineFull, match="3 requests"):
            made.submit(request(33))
        go.set()
        assert [tokens(stream) for stream in streams] == [list(greedy(length)[1]) for length in (8, 17, 30)]
        assert tokens(made.submit(request(33))) == list(greedy(33)[1])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_of_the_engine_leaves_no_reader_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    made: Engine = engine()

    def broken() -> list[Piece]:
        raise AssertionError("a defect")

    monkeypatch.setattr(made._scheduler, "plan", broken)
    stream = made.submit(request(8))
    assert end(stream)[1] in ("abort", "error")
    made._thread.join(60)
    with pytest.raises(EngineClosed):
        made.submit(request(8))
