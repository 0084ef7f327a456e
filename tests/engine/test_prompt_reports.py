"""What the engine says of a prompt's own tokens: the model's log-softmax over the whole text, whatever is
cut, kept, given up or running beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from qnext.engine.request import Output, Request, SamplingParams

from .harness import LENGTHS, MODEL, Watch, all_is_free, at_once, engine, greedy, request, tokens, whole

pytestmark = pytest.mark.usefixtures("poisoned_memory")

ROOMS: dict[str, dict[str, Any]] = {
    "plenty": {},
    "short steps": {"step_tokens": 16, "max_sequences": 3},
    "a token a step": {"step_tokens": 1, "max_sequences": 4, "max_length": 100},
    "each by itself": {"batch_invariant": True, "step_tokens": 50},
    "tiny pool": {"pages": 15, "page_size": 16, "max_sequences": 9, "step_tokens": 64, "draft_tokens": 1},
}


@torch.inference_mode()
def twin(prompt: tuple[int, ...]) -> Tensor:
    """Log-probabilities of what may follow each token but the last."""
    return MODEL.logits(MODEL(torch.tensor(prompt)))[:-1].float().log_softmax(-1)


def check(output: Output, prompt: tuple[int, ...], top: int) -> None:
    expected = twin(prompt)
    told = output.prompt_logprobs
    assert [report.token_id for report in told] == list(prompt[1:])
    assert [len(report.top) for report in told] == [top] * len(told)
    chosen = expected.gather(-1, torch.tensor(prompt[1:])[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor([each.logprob for each in told]), chosen, atol=1e-4, rtol=1e-4)
    if top:
        found = torch.tensor([[value for _, value in each.top] for each in told]).reshape(-1, top)
        torch.testing.assert_close(found, expected.topk(top).values, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("room", ROOMS)
def test_the_prompts_of_twenty_requests(room: str) -> None:
    fields = ROOMS[room]
    lengths = [n for n in LENGTHS if n < fields.get("max_length", 1000) - 30]
    with engine(**fields) as made:
        watch = Watch(made)
        with at_once(made):
            streams = [
                made.submit(request(n, prompt_logprobs=n % 3) if n % 2 else request(n)) for n in lengths
            ]
        outputs = [whole(stream) for stream in streams]
        assert [output.token_ids for output in outputs] == [greedy(n)[1] for n in lengths]
        assert (watch.preemptions > 0) == ("pages" in fields)
        assert all_is_free(made) and not watch.faults
    for n, output in zip(lengths, outputs, strict=True):
        if n % 2:
            check(output, greedy(n)[0], n % 3)
        else:
            assert output.prompt_logprobs == ()


def test_what_is_kept_does_not_stand_in_for_a_report() -> None:
    prompt, answer = greedy(150)
    with engine(page_size=16) as made:
        tokens(made.submit(request(150)))
        again = whole(made.submit(request(150)))
        assert again.cached_tokens > 100
        told = whole(made.submit(request(150, prompt_logprobs=2)))
        assert told.cached_tokens == 0 and told.token_ids == answer
        check(told, prompt, 2)
        assert whole(made.submit(request(150))).cached_tokens > 100


def test_reports_come_once_with_the_first_token() -> None:
    _, answer = greedy(90)
    with engine(step_tokens=20) as made:
        outputs = list(made.submit(request(90, prompt_logprobs=0)))
    assert [bool(output.prompt_logprobs) for output in outputs] == [True] + [False] * (len(outputs) - 1)
    assert outputs[0].token_ids[:1] == answer[:1]


def test_whoever_gives_way_is_reported_on_once() -> None:
    """Preempted while it writes, and computed anew, with its prompt then from the cache."""
    fields = {"pages": 17, "page_size": 8, "max_sequences": 4, "step_tokens": 64, "draft_tokens": 0}
    with engine(**fields) as made:
        watch = Watch(made)
        with at_once(made):
            streams = [made.submit(request(n, prompt_logprobs=1)) for n in (63, 64, 65)]
        outputs = [whole(stream) for stream in streams]
        assert watch.preemptions
    for n, output in zip((63, 64, 65), outputs, strict=True):
        check(output, greedy(n)[0], 1)


def test_one_token_has_nothing_to_report() -> None:
    with engine() as made:
        output = whole(made.submit(Request((3,), SamplingParams(max_tokens=1, prompt_logprobs=5))))
    assert output.prompt_logprobs == () and len(output.token_ids) == 1


def test_scores_that_are_not_finite_end_the_request() -> None:
    with engine(draft_tokens=0) as made:
        watch = Watch(made)

        def spoiled(hidden: Tensor) -> Tensor:
            chosen_from = bool(watch.rows)
            return watch.judge(hidden) * (1.0 if chosen_from else float("nan"))

        made._steps.runner.scores = spoiled  # type: ignore[method-assign]
        output = whole(made.submit(request(33, prompt_logprobs=0)))
        assert output.finish_reason == "error" and "not finite" in (output.error or "")
        made._steps.runner.scores = watch.judge  # type: ignore[method-assign]
        assert tokens(made.submit(request(33))) == list(greedy(33)[1])


def test_out_of_range() -> None:
    with pytest.raises(ValueError, match="prompt_logprobs is 21: give 0 to 20"):
        SamplingParams(prompt_logprobs=21)
