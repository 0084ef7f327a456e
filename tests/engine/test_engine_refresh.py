"""Other weights while the engine runs: nothing of the old ones is used again; and requests that begin
together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qnext.engine.config import EngineConfig
from qnext.engine.engine import Engine, EngineClosed, EngineFull
from qnext.engine.request import Request, SamplingParams
from qnext.model.qwen3_next import Qwen3Next

from ..model.tiny import tiny_model, token_ids
from .harness import all_is_free, whole

PROMPT = tuple(token_ids(70).tolist())


def network(seed: int) -> Qwen3Next:
    return tiny_model(seed, initializer_range=0.1)


def made(seed: int, **fields: object) -> Engine:
    return Engine(network(seed), EngineConfig(cache_bytes=16 << 20, **fields), checkpoint="tiny")  # type: ignore[arg-type]


def asked(count: int = 20, **fields: object) -> Request:
    return Request(PROMPT, SamplingParams(temperature=0, max_tokens=count, logprobs=0), **fields)  # type: ignore[arg-type]


def test_answers_are_those_of_the_new_weights_alone() -> None:
    """The old weights' prefixes are in the cache, and would be found."""
    with made(1) as fresh:
        wanted = whole(fresh.submit(asked()))
    with made(0) as engine:
        old = whole(engine.submit(asked()))
        assert whole(engine.submit(asked())).cached_tokens > 0
        engine.refresh(network(1))
        found = whole(engine.submit(asked()))
        again = whole(engine.submit(asked()))
    assert found.token_ids == wanted.token_ids != old.token_ids
    assert found.cached_tokens == 0 < again.cached_tokens
    assert again.token_ids == wanted.token_ids
    told = [[each.logprob for each in output.logprobs] for output in (found, wanted)]
    assert told[0] == pytest.approx(told[1], abs=1e-4)


def test_running_answers_go_on_with_the_new_weights() -> None:
    """What was said stays; what follows is what the new weights say after it."""
    new = network(1)
    with made(0) as engine:
        outputs = iter(engine.submit(asked(60)))
        said = list(next(outputs).token_ids)
        engine.refresh(new)
        rest = [token for output in outputs for token in output.token_ids]
        assert len(said) + len(rest) == 60 and all_is_free(engine)
    with made(1) as fresh:
        text = (*PROMPT, *said, *rest[:35])
        after = Request(text, SamplingParams(temperature=0, max_tokens=10))
        assert list(whole(fresh.submit(after)).token_ids) == rest[35:45]


def test_what_cannot_be_exchanged_is_refused(tmp_path: Path) -> None:
    with made(0) as engine:
        with pytest.raises(ValueError, match="another shape or kind"):
            engine.refresh(tiny_model(num_experts=4))
        with pytest.raises(ValueError, match="another shape or kind"):
            engine.refresh(network(1).to(torch.bfloat16))
    with pytest.raises(EngineClosed):
        engine.refresh(network(1))
    with (
        made(0, disk_cache=tmp_path) as engine,
        pytest.raises(ValueError, match="disk_cache keep states of the old weights"),
    ):
        engine.refresh(network(1))


def test_requests_begin_together_or_not_at_all() -> None:
    with made(0, max_sequences=2, max_waiting=2) as engine:
        streams = engine.submit_together([asked(5) for _ in range(4)])
        assert len({whole(stream).token_ids for stream in streams}) == 1
        for refused, error in (([asked(5)] * 5, EngineFull), ([asked(5), Request(())], ValueError)):
            with pytest.raises(error):
                engine.submit_together(refused)
            assert all_is_free(engine)  # who was queued before the refusal too
        assert [len(whole(stream).token_ids) for stream in engine.submit_together([asked(5)] * 4)] == [5] * 4


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_log_probs_at_the_temperature(temperature: float) -> None:
    """Of what is drawn from, where they are asked for; of the model itself otherwise, in the same batch."""
    sampling = SamplingParams(temperature=temperature, max_tokens=10, logprobs=0, seed=5)
    with made(0) as engine:
        requests = [Request(PROMPT, sampling, tempered_logprobs=tempered) for tempered in (True, False)]
        tempered, plain = (whole(stream) for stream in engine.submit_together(requests))
    assert tempered.token_ids == plain.token_ids
    model = network(0)
    with torch.no_grad():
        scores = model.logits(model(torch.tensor([*PROMPT, *plain.token_ids])))[len(PROMPT) - 1 : -1]
    for output, heat in ((tempered, temperature), (plain, 1.0)):
        wanted = (scores / heat).log_softmax(-1)[range(10), list(output.token_ids)]
        assert [each.logprob for each in output.logprobs] == pytest.approx(wanted.tolist(), abs=1e-4)
