"""What the engine says about a request, and what requests may ask for beside tokens: it is so."""

from __future__ import annotations

import time
from threading import Event

import pytest
import torch

from qnext.engine.request import Request, SamplingParams
from qnext.engine.stream import Stream
from qnext.model.layers import Routing

from .harness import (
    LENGTHS,
    MODEL,
    Watch,
    all_is_free,
    at_once,
    end,
    engine,
    greedy,
    request,
    taken_in,
    tokens,
    whole,
)


def test_facts_tell_how_it_went() -> None:
    begun = time.monotonic()
    with engine(max_sequences=1, prefix_cache=False) as made:
        with at_once(made):
            streams = [made.submit(request(length)) for length in (64, 33)]
        first, second = (whole(stream).facts for stream in streams)
    lasted = time.monotonic() - begun
    assert first is not None and second is not None
    for facts, length in ((first, 64), (second, 33)):
        prompt, answer = greedy(length)
        times = (facts.queue_seconds, facts.prefill_seconds, facts.decode_seconds)
        assert all(each >= 0 for each in times) and sum(times) <= lasted
        assert facts.prefill_seconds > 0 and facts.decode_seconds > 0
        assert taken_in(facts) == len(prompt) + len(answer) - 1
        assert 0 <= facts.accepted_tokens <= facts.drafted_tokens < facts.computed_tokens
        assert facts.cached_tokens == facts.preemptions == 0 and facts.routed_experts is None
    assert second.queue_seconds >= first.prefill_seconds + first.decode_seconds - 0.01


def test_counters_are_the_sums_of_facts() -> None:
    with engine(fixed_drafts=True, pages=80, step_tokens=64) as made:
        watch = Watch(made)
        for _ in range(2):
            with at_once(made):
                streams = [made.submit(request(length)) for length in (17, 33, 63, 64, 90)]
                streams.append(made.submit(Request(greedy(8)[0], SamplingParams(temperature=0))))
            streams[-1].abort()
            outputs = [whole(stream) for stream in streams]
            before = made.stats()
        counters, facts = made.stats().counters, [each.facts for each in outputs if each.facts]
        assert counters.steps == watch.steps and counters.step_seconds > 0
        assert (counters.lengths, counters.aborted, counters.stopped, counters.failures) == (10, 2, 0, 0)
        assert counters.prompt_tokens == 2 * (17 + 33 + 63 + 64 + 90 + 8)
        assert counters.cached_tokens >= sum(each.cached_tokens for each in facts) > 0
        assert counters.drafted_tokens > counters.accepted_tokens >= 0
        assert counters.computed_tokens > counters.drafted_tokens
        assert counters.generated_tokens >= sum(len(each.token_ids) for each in outputs)
        assert counters.preemptions == watch.preemptions == 0
        assert before.pages == 80 and before.running == before.waiting == before.slots_used == 0
        assert before.pages_used == 0 < before.pages_kept <= 80
        assert all_is_free(made)


def test_gauges_show_who_runs_and_who_waits() -> None:
    with engine(max_sequences=2) as made:
        watch, seen = Watch(made), []
        watch.before = lambda step, pieces: seen.append(made.stats())
        with at_once(made):
            streams = [made.submit(request(length)) for length in (33, 63, 64)]
        for stream in streams:
            tokens(stream)
        assert (seen[0].running, seen[0].waiting, seen[0].slots, seen[0].slots_used) == (2, 1, 2, 2)
        assert 6 <= seen[0].pages_used < 14 and (seen[-1].running, seen[-1].waiting) == (1, 0)


def test_the_urgent_are_answered_first() -> None:
    with engine(max_sequences=1) as made:
        watch, order = Watch(made), list[int]()

        def act(step: int, pieces: object) -> None:
            length = len(watch.rows[0][0].request.prompt)
            if length not in order:
                order.append(length)

        watch.before = act
        with at_once(made):
            streams = [
                made.submit(Request(greedy(length)[0], SamplingParams(max_tokens=3), priority=priority))
                for length, priority in ((8, 2), (17, 0), (30, 0), (33, -1), (5, 1))
            ]
        for stream in streams:
            tokens(stream)
        assert order == [33, 17, 30, 5, 8]


@pytest.mark.parametrize("waiting", [False, True])
def test_a_missed_deadline_ends_a_request_and_no_other(waiting: bool) -> None:
    with engine(max_sequences=1 if waiting else 4) as made:
        watch = Watch(made)
        watch.before = lambda step, pieces: time.sleep(0.03)
        long = SamplingParams(temperature=0, max_tokens=60)
        with at_once(made):
            first = made.submit(request(33))
            late = made.submit(Request(greedy(17)[0], long, deadline=0.1))
            calm = made.submit(
                Request(greedy(30)[0], SamplingParams(temperature=0, max_tokens=5), deadline=60.0)
            )
        found = whole(late)
        assert found.finish_reason == "error" and found.timed_out and "0.1 s" in str(found.error)
        assert (len(found.token_ids) == 0) == waiting and found.token_ids == greedy(17)[1][
            : len(found.token_ids)
        ]
        assert tokens(first) == list(greedy(33)[1])
        good = whole(calm)
        assert good.token_ids == greedy(30)[1][:5] and not good.timed_out
        assert made.stats().counters.failures == 1
        assert all_is_free(made)


@pytest.mark.parametrize("deadline", [0, -1.0, float("nan")])
def test_a_deadline_in_the_past_is_refused(deadline: float) -> None:
    with engine() as made, pytest.raises(ValueError, match="deadline is"):
        made.submit(Request((1, 2), deadline=deadline))


@pytest.mark.parametrize("when", range(0, 14, 2))
def test_an_abort_at_any_step_leaves_the_others_alone(when: int) -> None:
    with engine(step_tokens=40, fixed_drafts=True) as made:
        watch = Watch(made)
        watch.before = lambda step, pieces: victim.abort() if step == when else None
        with at_once(made):
            streams = [made.submit(request(length)) for length in (17, 64)]
            victim = made.submit(request(90, max_tokens=200))
        found, reason = end(victim)
        assert reason == "abort" and tuple(found[:18]) == greedy(90)[1][: len(found)]
        assert [tokens(stream) for stream in streams] == [list(greedy(17)[1]), list(greedy(64)[1])]
        again = whole(made.submit(request(90)))  # what it had computed is kept, and right
        assert again.token_ids == greedy(90)[1] and (again.cached_tokens > 0) == (when > 0)
        assert all_is_free(made) and not watch.faults


def test_prefixes_are_shared_within_a_salt_alone() -> None:
    with engine() as made:
        found = []
        for salt in ("a", "a", "b", "", "b"):
            output = whole(made.submit(Request(greedy(64)[0], request(64).sampling, cache_salt=salt)))
            assert output.token_ids == greedy(64)[1]
            found.append(output.cached_tokens)
        assert found == [0, 63, 0, 0, 63]


def test_cached_tokens_were_not_computed() -> None:
    """The watch counts what is computed: prompt and answer, but for what was found."""
    with engine(draft_tokens=0) as made:
        for repeat in range(2):
            watch = Watch(made)
            for length in LENGTHS:
                stream = made.submit(request(length))
                output = whole(stream)
                assert output.token_ids == greedy(length)[1]
                once = length + len(output.token_ids) - 1
                assert watch.computed[stream] == once - output.cached_tokens
                assert output.cached_tokens == repeat * (length - 1)


def test_an_answer_goes_on_from_where_it_ended() -> None:
    """A conversation's next turn computes nothing but what is new."""
    with engine() as made:
        prompt, answer = greedy(33)
        tokens(made.submit(request(33)))
        following = (*prompt, *answer, 1, 2, 3)
        output = whole(made.submit(Request(following, SamplingParams(temperature=0, max_tokens=2))))
        assert output.cached_tokens == len(prompt) + len(answer) - 1


def test_equal_prompts_at_once_are_computed_once() -> None:
    with engine() as made:
        watch = Watch(made)
        with at_once(made):
            streams = [made.submit(request(90)) for _ in range(4)]
        outputs = [whole(stream) for stream in streams]
        assert {output.token_ids for output in outputs} == {greedy(90)[1]}
        assert [output.cached_tokens for output in outputs] == [0, 89, 89, 89]
        prompts = 90 + 3
        assert sum(watch.computed.values()) <= prompts + 4 * (len(greedy(90)[1]) - 1)


def test_a_prefix_that_is_waited_for_in_vain_is_computed() -> None:
    """The first leaves before its prompt is done: the second does not wait for ever."""
    with engine(step_tokens=16) as made:
        watch = Watch(made)
        watch.before = lambda step, pieces: first.abort() if step == 2 else None
        with at_once(made):
            first, second = made.submit(request(90)), made.submit(request(90))
        assert end(first) == ([], "abort")
        output = whole(second)
        assert output.token_ids == greedy(90)[1] and 0 < output.cached_tokens <= 48


@torch.inference_mode()
def routing(text: tuple[int, ...]) -> torch.Tensor:
    found: Routing = []
    MODEL(torch.tensor(text), routing=found)
    return torch.stack([chosen for _, chosen in found], 1)


@pytest.mark.parametrize(
    "fields", [{}, {"step_tokens": 7}, {"fixed_drafts": True}, {"batch_invariant": True}], ids=str
)
def test_routed_experts_are_those_of_a_plain_forward(fields: dict[str, int]) -> None:
    def asking(length: int) -> Request:
        plain = request(length)
        return Request(plain.prompt, plain.sampling, routed_experts=True)

    with engine(**fields) as made:
        for _ in range(2):
            with at_once(made):
                stream, other = made.submit(asking(33)), made.submit(request(30))
            output = whole(stream)
            assert output.facts is not None and whole(other).facts is not None
            found, cached = output.facts.routed_experts, output.cached_tokens
            text = greedy(33)[0] + greedy(33)[1][:-1]
            assert found is not None
            assert found.shape == (len(text) - cached, MODEL.config.num_hidden_layers, 3)
            wanted = routing(text)[cached:].numpy()
            same = (found == wanted).all(-1)
            assert (found[~same] != wanted[~same]).sum() <= 4  # rounding may change places of equals
        assert (cached > 0) == made.config.keeps_prefixes


def test_readers_wait_for_nothing_else() -> None:
    """A stream's first tokens come while others are still computed."""
    with engine(step_tokens=16) as made:
        watch, first, go = Watch(made), Event(), Event()

        def act(step: int, pieces: object) -> None:
            if step == 4:
                first.set()
                assert go.wait(60)

        watch.before = act
        with at_once(made):
            short, long = made.submit(request(8)), made.submit(request(200))
        assert first.wait(60)
        reader = iter(short)
        got = [next(reader), next(reader)]
        go.set()
        assert got[0].token_ids + got[1].token_ids == greedy(8)[1][: sum(len(each.token_ids) for each in got)]
        assert tokens(long) == list(greedy(200)[1])
        assert isinstance(short, Stream)
