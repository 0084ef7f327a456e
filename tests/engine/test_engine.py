"""What the engine answers: the same, whatever runs beside it and however little room there is."""

from __future__ import annotations

import asyncio
from pathlib import Path
from threading import Thread

import pytest
import torch

from qnext.engine.engine import Engine
from qnext.engine.request import Reasoning, Request, SamplingParams
from qnext.engine.stream import Stream

from ..model.tiny import token_ids
from .harness import (
    LENGTHS,
    MODEL,
    Watch,
    all_is_free,
    at_once,
    continuation,
    end,
    engine,
    greedy,
    request,
    taken_in,
    tokens,
    whole,
)

pytestmark = pytest.mark.usefixtures("poisoned_memory")

ROOMS: dict[str, dict[str, int]] = {
    "plenty": {},
    "always three guesses": {"fixed_drafts": True},
    "eight guesses in short steps": {"fixed_drafts": True, "draft_tokens": 8, "step_tokens": 20},
    "no guesses, nothing kept": {"draft_tokens": 0, "prefix_cache": False},
    "each by itself": {"batch_invariant": True, "step_tokens": 50},
    "few slots, short steps": {"step_tokens": 16, "max_sequences": 3},
    "one at a time": {"max_sequences": 1, "step_tokens": 100},
    "a token a step": {"step_tokens": 1, "max_sequences": 4, "max_length": 100},
    "tiny pool": {"pages": 15, "page_size": 16, "max_sequences": 9, "step_tokens": 64, "draft_tokens": 1},
    "tiny pool of tiny pages": {"pages": 80, "page_size": 3, "max_sequences": 20, "step_tokens": 500},
    "one huge page each": {"page_size": 512, "max_sequences": 6},
}


@pytest.mark.parametrize("room", ROOMS)
def test_twenty_together_equal_each_alone(room: str) -> None:
    fields = ROOMS[room]
    lengths = [n for n in LENGTHS if n < fields.get("max_length", 1000) - 30]
    with engine(**fields) as made:
        watch = Watch(made)
        with at_once(made):
            streams = [made.submit(request(length)) for length in lengths]
        outputs = [whole(stream) for stream in streams]
        assert [output.token_ids for output in outputs] == [greedy(length)[1] for length in lengths]
        assert all_is_free(made) and not watch.faults
        assert (watch.preemptions > 0) == ("pages" in fields)
        for output, (prompt, answer) in zip(outputs, map(greedy, lengths), strict=True):
            assert output.facts is not None
            once = len(prompt) + len(answer) - 1  # the last token is not computed
            assert taken_in(output.facts) == once or (
                output.facts.preemptions and taken_in(output.facts) > once
            )
        assert sum(output.facts.preemptions for output in outputs if output.facts) == watch.preemptions


def test_requests_really_run_together() -> None:
    with engine() as made:
        watch = Watch(made)
        with at_once(made):
            streams = [made.submit(request(length)) for length in LENGTHS]
        for stream in streams:
            tokens(stream)
        assert watch.steps < 3 + max(len(greedy(length)[1]) for length in LENGTHS)


WISHES = [
    SamplingParams(temperature=1.0, max_tokens=20),
    SamplingParams(temperature=2.0, top_k=20, top_p=0.9, max_tokens=20),
    SamplingParams(temperature=0.7, repetition_penalty=1.3, max_tokens=20),
    SamplingParams(temperature=1.5, presence_penalty=1.0, frequency_penalty=0.5, max_tokens=20),
    SamplingParams(temperature=1.0, min_p=0.05, max_tokens=20),
]


def sampled() -> list[Request]:
    return [
        Request(greedy(length)[0], SamplingParams(**{**WISHES[i % 5].__dict__, "seed": i}))
        for i, length in enumerate(LENGTHS)
    ]


@pytest.fixture(scope="module")
def drawn_alone() -> list[list[int]]:
    with engine() as made:
        return [tokens(made.submit(each)) for each in sampled()]


@pytest.mark.parametrize("room", ["plenty", "few slots, short steps", "tiny pool", "tiny pool of tiny pages"])
def test_a_seed_draws_the_same_in_any_company(room: str, drawn_alone: list[list[int]]) -> None:
    with engine(**ROOMS[room]) as made:
        watch = Watch(made)
        with at_once(made):
            streams = [made.submit(each) for each in sampled()]
        assert [tokens(stream) for stream in streams] == drawn_alone
        assert (watch.preemptions > 0) == ("pages" in ROOMS[room])
    assert len({tuple(row) for row in drawn_alone}) == len(drawn_alone)


def test_seeds_matter_and_none_is_drawn_afresh() -> None:
    with engine() as made:
        prompt = greedy(8)[0]
        params = [SamplingParams(seed=seed, max_tokens=20) for seed in (1, 1, 2, None, None)]
        rows = [tuple(tokens(made.submit(Request(prompt, each)))) for each in params]
    assert rows[0] == rows[1] and len(set(rows)) == 4


def test_eos_and_stop_ids_end_the_answer_and_are_part_of_it() -> None:
    prompt, answer = greedy(17)
    last = next(i for i in range(3, len(answer)) if answer[i] not in answer[:i])
    wanted = list(answer[: last + 1])
    sampling = SamplingParams(temperature=0, max_tokens=len(answer))
    stopping = SamplingParams(temperature=0, max_tokens=len(answer), stop_token_ids=(answer[last],))
    going_on = SamplingParams(temperature=0, max_tokens=len(answer), ignore_eos=True)
    with engine() as made:
        assert end(made.submit(Request(prompt, sampling, eos=(answer[last],)))) == (wanted, "stop")
        assert end(made.submit(Request(prompt, stopping))) == (wanted, "stop")
        assert end(made.submit(Request(prompt, going_on, eos=(answer[last],)))) == (list(answer), "length")
        assert all_is_free(made)


def test_max_total_tokens_counts_thinking_and_answer() -> None:
    prompt, answer = greedy(17)
    thinking = Reasoning(end=answer[2], close=(answer[2],))
    with engine() as made:
        params = SamplingParams(temperature=0, max_total_tokens=6)
        assert end(made.submit(Request(prompt, params, reasoning=thinking))) == (list(answer[:6]), "length")
        params = SamplingParams(temperature=0, max_tokens=4)  # the thinking goes free
        found, reason = end(made.submit(Request(prompt, params, reasoning=thinking)))
        first = answer.index(answer[2])
        assert (found, reason) == (list(answer[: first + 5]), "length")


def test_a_thinking_budget_writes_the_closing_ids() -> None:
    prompt, answer = greedy(33)
    close = tuple(
        next(i for i in range(96) if i not in answer[:4] + taken) for taken in ((), (0, 1), (0, 1, 2))
    )
    thinking = Reasoning(end=close[1], close=close)
    text = prompt + answer[:4] + close
    rest = continuation(text, 5)
    assert rest is not None
    params = SamplingParams(temperature=0, max_tokens=6, thinking_budget=4, logprobs=1)
    with engine(step_tokens=8) as made:
        outputs = list(made.submit(Request(prompt, params, reasoning=thinking)))
    found = [token for output in outputs for token in output.token_ids]
    assert found == [*answer[:4], *close, *rest]
    reports = [report for output in outputs for report in output.logprobs]
    assert [report.token_id for report in reports] == found
    assert [report.logprob == 0 for report in reports] == [False] * 4 + [True] * 3 + [False] * 5


def test_length_ends_at_the_engines_limit() -> None:
    prompt = greedy(8)[0]
    with engine(max_length=12) as made:
        found, reason = end(made.submit(Request(prompt, SamplingParams(temperature=0))))
        assert (len(found), reason) == (4, "length")
        longest = Request(tuple(token_ids(11).tolist()), SamplingParams(temperature=0))
        assert len(tokens(made.submit(longest))) == 1


def test_logprobs_are_those_of_a_plain_forward() -> None:
    prompt, answer = greedy(30)
    with engine(step_tokens=7) as made:
        outputs = list(made.submit(request(30, logprobs=3)))
    with torch.inference_mode():
        scores = MODEL.logits(MODEL(torch.tensor(prompt + answer))[len(prompt) - 1 : -1]).log_softmax(-1)
    reports = [report for output in outputs for report in output.logprobs]
    assert [report.token_id for report in reports] == list(answer)
    for row, report in zip(scores, reports, strict=True):
        assert report.logprob == pytest.approx(float(row[report.token_id]), abs=1e-3)
        assert [token for token, _ in report.top] == row.topk(3).indices.tolist()


def test_readers_in_many_threads_and_in_a_loop() -> None:
    lengths = LENGTHS[:8]
    found: dict[int, list[int]] = {}

    async def read(stream: Stream) -> list[int]:
        return [token async for output in stream for token in output.token_ids]

    with engine(max_sequences=5) as made:

        def ask(length: int) -> None:
            found[length] = tokens(made.submit(request(length)))

        async def ask_all() -> list[list[int]]:
            return await asyncio.gather(*(read(made.submit(request(length))) for length in lengths))

        threads = [Thread(target=ask, args=(length,)) for length in lengths]
        for thread in threads:
            thread.start()
        wanted = [list(greedy(length)[1]) for length in lengths]
        assert asyncio.run(ask_all()) == wanted
        for thread in threads:
            thread.join(60)
        assert [found[length] for length in lengths] == wanted
        assert all_is_free(made)


def test_from_pretrained(tmp_path: Path) -> None:
    MODEL.save_pretrained(tmp_path)
    with Engine.from_pretrained(tmp_path, dtype=torch.float32) as made:
        assert tokens(made.submit(request(17))) == list(greedy(17)[1])
    with pytest.raises(ValueError, match="nowhere"):
        Engine.from_pretrained(tmp_path / "nowhere")


def test_half_precision_runs_the_same_way() -> None:
    """In bfloat16 the cache rounds; together still equals alone."""
    model = MODEL.__class__(MODEL.config, dtype=torch.bfloat16)
    model.load_state_dict(MODEL.state_dict())
    with engine(model.eval().requires_grad_(False)) as made:
        assert made._steps.runner.state.pages.dtype == torch.bfloat16
        assert len(tokens(made.submit(request(33)))) == len(greedy(33)[1])
