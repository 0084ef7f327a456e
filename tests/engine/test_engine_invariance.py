"""To the last bit: what runs beside a request, and lengths that others asked for, change nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qnext.engine.engine import Engine
from qnext.engine.request import Request, SamplingParams
from qnext.engine.stream import Stream
from qnext.model.qwen3_next import Qwen3Next
from qnext.model.rope_scaling import Yarn

from ..model.tiny import tiny_model
from .harness import MODEL, Watch, at_once, engine, greedy, request, whole

LENGTHS = (33, 17, 65, 90, 3, 30, 150, 64, 128)
Report = list[tuple[int, float, tuple[tuple[int, float], ...]]]


def report(stream: Stream) -> Report:
    return [(each.token_id, each.logprob, each.top) for each in whole(stream).logprobs]


def half() -> Qwen3Next:
    model = Qwen3Next(MODEL.config, dtype=torch.bfloat16)
    model.load_state_dict(MODEL.state_dict())
    return model.eval().requires_grad_(False)


def asking(length: int, **sampling: Any) -> Request:
    return request(length, logprobs=4, **sampling)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "fields", [{}, {"step_tokens": 40}, {"pages": 14, "max_sequences": 5}], ids=["plenty", "short", "tight"]
)
def test_batch_invariant_answers_are_equal_to_the_last_bit(dtype: str, fields: dict[str, Any]) -> None:
    with engine(half() if dtype == "bfloat16" else MODEL, batch_invariant=True, **fields) as made:
        alone = [report(made.submit(asking(length))) for length in LENGTHS]
        watch = Watch(made)
        for wanted in (LENGTHS, LENGTHS[::-1]):
            with at_once(made):
                streams = {length: made.submit(asking(length)) for length in wanted}
            assert [report(streams[length]) for length in LENGTHS] == alone
        assert max(len(each) for each in alone) > 10 and not watch.faults
        assert ("pages" in fields) == (watch.preemptions > 0)


def test_without_it_they_are_equal_but_for_rounding() -> None:
    with engine(draft_tokens=0, prefix_cache=False) as made:
        alone = report(made.submit(asking(33)))
        with at_once(made):
            streams = [made.submit(asking(length)) for length in LENGTHS]
        together, *_ = (report(stream) for stream in streams)
    assert [token for token, *_ in together] == [token for token, *_ in alone]
    assert [p for _, p, _ in together] == pytest.approx([p for _, p, _ in alone], abs=1e-4)


NATIVE = 64
SCALING = Yarn(factor=4.0, original_max_position_embeddings=NATIVE, beta_fast=4.0)
PLAIN = tiny_model(initializer_range=0.1, max_position_embeddings=NATIVE)
YARN = tiny_model(initializer_range=0.1, max_position_embeddings=NATIVE, rope_scaling=SCALING)


def wish(length: int, count: int | None = None) -> Request:
    return Request(greedy(length)[0], SamplingParams(temperature=0, max_tokens=count, logprobs=4))


@torch.inference_mode()
def stretched(length: int, count: int) -> tuple[int, ...]:
    """The greedy answer of whole forwards with stretched positions."""
    text = list(greedy(length)[0])
    for _ in range(count):
        text.append(int(YARN.logits(YARN(torch.tensor(text))[-1]).argmax()))
    return tuple(text[length:])


@pytest.mark.parametrize("beside", [False, True])
def test_short_requests_know_nothing_of_the_scaling(beside: bool) -> None:
    def answers(model: Qwen3Next) -> list[Report]:
        with engine(model, draft_tokens=0) as made:
            with at_once(made):
                streams = [made.submit(wish(length, 15)) for length in (3, 17, 33)]
                if beside and model is YARN:
                    made.submit(wish(90, 10))
            return [report(stream) for stream in streams]

    plain, scaled = answers(PLAIN), answers(YARN)
    if not beside:
        assert scaled == plain  # to the last bit
    for one, other in zip(plain, scaled, strict=True):
        assert [p for _, p, _ in one] == pytest.approx([p for _, p, _ in other], abs=1e-4)


def test_long_requests_are_stretched_from_their_first_token_on() -> None:
    with engine(YARN) as made:
        for length, count in ((90, 12), (63, 12), (17, 60)):
            assert whole(made.submit(wish(length, count))).token_ids == stretched(length, count), length
        assert whole(made.submit(wish(33, 12))).token_ids != stretched(33, 12)  # it is short


def test_short_and_long_do_not_share_what_is_kept() -> None:
    with engine(YARN) as made:
        found = [whole(made.submit(wish(33, count))).cached_tokens for count in (10, 50, 10, 50)]
        assert found == [0, 0, 32, 32]
        both = engine_lengths(made, (33, 33), (10, 50))
        assert both == [10, 50]


def engine_lengths(made: Engine, lengths: tuple[int, ...], counts: tuple[int, ...]) -> list[int]:
    with at_once(made):
        streams = [made.submit(wish(*each)) for each in zip(lengths, counts, strict=True)]
    return [len(whole(stream).token_ids) for stream in streams]


def test_who_does_not_ask_for_length_ends_at_the_native_one() -> None:
    with engine(YARN) as made:
        assert made.max_length == 4 * NATIVE
        assert len(whole(made.submit(wish(33))).token_ids) == NATIVE - 33
        assert len(whole(made.submit(wish(63))).token_ids) == 1
        assert len(whole(made.submit(wish(64))).token_ids) == 4 * NATIVE - 64
        assert len(whole(made.submit(wish(33, 32))).token_ids) == 32
        assert whole(made.submit(wish(33, 1000))).finish_reason == "length"
