"""What may be asked of the engine, and how it refuses the rest."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from qnext.engine.request import MAX_SEED, Request, SamplingParams

LEGAL: list[dict[str, Any]] = [
    {},
    {"temperature": 0},
    {"temperature": 1e-300},
    {"temperature": 1e300},
    {"top_p": 1},
    {"top_p": 1e-9},
    {"top_k": 0},
    {"top_k": 10**30},
    {"min_p": 0},
    {"min_p": 1.0},
    {"repetition_penalty": 1e-9},
    {"presence_penalty": -2, "frequency_penalty": 2},
    {"seed": 0},
    {"seed": MAX_SEED},
    {"max_tokens": 1, "max_total_tokens": 1, "thinking_budget": 1},
    {"logprobs": 0},
    {"logprobs": 20},
    {"n": 1},
]
ILLEGAL: list[tuple[str, Any]] = [
    ("temperature", -0.1),
    ("temperature", float("nan")),
    ("temperature", float("inf")),
    ("temperature", "1"),
    ("temperature", None),
    ("temperature", True),
    ("top_p", 0),
    ("top_p", 1.01),
    ("top_p", float("nan")),
    ("top_k", -1),
    ("top_k", 2.5),
    ("top_k", None),
    ("min_p", -0.1),
    ("min_p", 1.1),
    ("repetition_penalty", 0),
    ("repetition_penalty", float("inf")),
    ("repetition_penalty", float("nan")),
    ("presence_penalty", 2.1),
    ("presence_penalty", float("nan")),
    ("frequency_penalty", -2.1),
    ("seed", -1),
    ("seed", 1.5),
    ("seed", MAX_SEED + 1),
    ("max_tokens", 0),
    ("max_tokens", 7.5),
    ("max_total_tokens", 0),
    ("thinking_budget", 0),
    ("logprobs", -1),
    ("logprobs", 21),
    ("logprobs", True),
    ("prompt_logprobs", -1),
    ("prompt_logprobs", 21),
    ("prompt_logprobs", True),
    ("n", 0),
    ("n", 1.5),
    ("ignore_eos", "no"),
    ("stop", ("",)),
    ("stop", ("a", "")),
    ("stop", (5,)),
    ("stop_token_ids", ("a",)),
]


@pytest.mark.parametrize("fields", LEGAL, ids=str)
def test_legal_wishes(fields: dict[str, Any]) -> None:
    params = SamplingParams(**fields)
    assert all(getattr(params, name) == value for name, value in fields.items())


@pytest.mark.parametrize("name,value", ILLEGAL, ids=str)
def test_illegal_wishes_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"^{name} "):
        SamplingParams(**{name: value})  # type: ignore[arg-type]


def test_every_field_is_tried() -> None:
    assert {name for name, _ in ILLEGAL} == {field.name for field in dataclasses.fields(SamplingParams)}


def test_one_stop_text_and_lists() -> None:
    assert SamplingParams(stop="end").stop == ("end",)  # type: ignore[arg-type]
    params = SamplingParams(stop=["a", "b"], stop_token_ids=[1, 2])  # type: ignore[arg-type]
    assert params.stop == ("a", "b") and params.stop_token_ids == (1, 2)


def test_requests_do_not_change() -> None:
    request = Request((1, 2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        request.prompt = (3,)  # type: ignore[misc]
    assert request.sampling == SamplingParams() and request.eos == () and request.reasoning is None
