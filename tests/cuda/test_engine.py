"""The engine on CUDA: whatever runs beside them, answers are those of a plain loop of forwards there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from copy import deepcopy
from typing import Any

import pytest
import torch

from qnext.actor import EngineActor
from qnext.engine.request import Output, Request, SamplingParams
from qnext.model.qwen3_next import Qwen3Next
from qnext.train.objective import gspo
from qnext.train.policy import answer_log_probs
from qnext.train.rollout import Row

from ..engine.harness import MODEL, POISON, Watch, all_is_free, at_once, continuation, engine, whole
from ..engine.programs import EveryOther
from ..model.tiny import token_ids
from ..test_actor import asks

LENGTHS = (1, 3, 17, 33, 64, 65, 66, 129, 150, 200)
COUNT = 10
GREEDY = SamplingParams(temperature=0, max_tokens=COUNT)
ROOMS: dict[str, dict[str, Any]] = {
    "no guesses": {"draft_tokens": 0},
    "three guesses": {"draft_tokens": 3, "fixed_drafts": True},
    "as many as pays, short steps": {"step_tokens": 24, "max_sequences": 4},
    "each by itself": {"batch_invariant": True, "step_tokens": 50},
    "tiny pool": {"pages": 80, "page_size": 3, "max_sequences": 20, "step_tokens": 500},
}
Text = tuple[tuple[int, ...], tuple[int, ...]]


@pytest.fixture(scope="module")
def model(device: str) -> Qwen3Next:
    return deepcopy(MODEL).to(device)


def clear(model: Qwen3Next, before: tuple[int, ...], length: int) -> Text:
    """A text that begins so, and its greedy answer, which no rounding decides."""
    for seed in range(100):
        prompt = before + tuple((token_ids(length, seed=1000 * length + seed) % POISON).tolist())
        answer = continuation(prompt, COUNT, model)
        if answer is not None:
            return prompt, answer
    raise AssertionError("no prompt has a clear answer")


@pytest.fixture(scope="module")
def texts(model: Qwen3Next) -> list[Text]:
    return [clear(model, (), length) for length in LENGTHS]


@pytest.fixture(scope="module")
def longer(model: Qwen3Next, texts: list[Text]) -> list[Text]:
    """What goes on from some of the texts and their answers."""
    return [clear(model, prompt + answer, 5) for prompt, answer in texts[2:6]]


@pytest.mark.parametrize("room", ROOMS)
def test_together_equal_the_plain_loop(
    room: str, model: Qwen3Next, texts: list[Text], longer: list[Text]
) -> None:
    with engine(model, **ROOMS[room]) as made:
        watch = Watch(made)
        for round in (texts, longer):
            with at_once(made):
                streams = [made.submit(Request(prompt, GREEDY)) for prompt, _ in round]
            outputs = [whole(stream) for stream in streams]
            assert [output.token_ids for output in outputs] == [answer for _, answer in round]
        assert not watch.faults and (watch.preemptions > 0) == ("pages" in ROOMS[room])
        if made.config.keeps_prefixes and "pages" not in ROOMS[room]:
            for output, (prompt, answer) in zip(outputs, texts[2:6], strict=True):
                assert output.cached_tokens >= len(prompt) + len(answer) - 1
        assert all_is_free(made)


@pytest.mark.parametrize("guesses", [0, 3])
def test_host_memory_brings_back_what_was_evicted(
    guesses: int, model: Qwen3Next, texts: list[Text], longer: list[Text]
) -> None:
    fields = {"host_cache_bytes": 64 << 20, "pages": 45, "max_sequences": 2, "draft_tokens": guesses}
    with engine(model, **fields, fixed_drafts=True) as made:
        for prompt, answer in texts:
            assert whole(made.submit(Request(prompt, GREEDY))).token_ids == answer
        assert made.stats().evictions > 0
        for (prompt, answer), (before, said) in zip(longer, texts[2:6], strict=True):
            output = whole(made.submit(Request(prompt, GREEDY)))
            assert output.token_ids == answer
            assert output.cached_tokens >= len(before) + len(said) - 1
        assert all_is_free(made)


def sampled(texts: list[Text]) -> Iterator[Request]:
    """Every way to choose: of all tokens, of the likeliest, with penalties, by a grammar; and reports."""
    wishes: list[dict[str, Any]] = [
        {"temperature": 1.0, "prompt_logprobs": 2},
        {"temperature": 2.0, "top_k": 20, "top_p": 0.9, "logprobs": 3},
        {"temperature": 0.7, "repetition_penalty": 1.3, "min_p": 0.01},
        {"temperature": 1.5, "presence_penalty": 1.0, "frequency_penalty": 0.5, "logprobs": 0},
        {"temperature": 1.0, "top_p": 0.95},
    ]
    for seed, (prompt, _) in enumerate(texts):
        params = SamplingParams(**wishes[seed % 5], seed=seed, max_tokens=20)
        grammar = EveryOther() if seed % 5 == 4 else None
        yield Request(prompt, params, grammar=grammar, routed_experts=seed % 2 == 0)


def drawn(model: Qwen3Next, texts: list[Text], **fields: Any) -> list[Output]:
    with engine(model, **fields) as made:
        with at_once(made):
            streams = [made.submit(each) for each in sampled(texts)]
        return [whole(stream) for stream in streams]


def test_a_seed_draws_the_same_again_and_what_it_draws_on_a_cpu(model: Qwen3Next, texts: list[Text]) -> None:
    first = drawn(model, texts)
    others = [
        drawn(model, texts),
        drawn(model, texts, fixed_drafts=True, max_sequences=3, step_tokens=40),
        drawn(MODEL, texts, draft_tokens=0),
    ]
    for other in others:
        assert [output.token_ids for output in other] == [output.token_ids for output in first]
        for one, two in zip(first, other, strict=True):
            told = [[each.logprob for each in (*o.logprobs, *o.prompt_logprobs)] for o in (one, two)]
            assert told[0] == pytest.approx(told[1], abs=1e-3)
    assert len({output.token_ids for output in first}) == len(first)


@torch.no_grad()
def test_what_the_actor_draws_has_ratios_of_1(model: Qwen3Next, device: str) -> None:
    with closing(EngineActor(torch.float32, 200, at_once=5)) as actor:
        actor.refresh(model)
        answers = actor.answer(asks())
    row, old = Row.of(answers, device), torch.cat([each.log_probs for each in answers]).to(device)
    new, _ = answer_log_probs(model, row, 1.0)
    assert (new - old).abs().max() <= 1e-4 and row.experts is not None
    found = gspo(new, old, row.answers, torch.ones(len(answers), device=device), 0.1, 0.1)
    assert (found.ratio - 1).abs().max() <= 1e-4
