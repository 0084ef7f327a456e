"""Scoring the whole way, by lm-evaluation-harness' requests: what the server tells of a text is the model's
own log-softmax."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import torch

from qnext import Qwen3Next
from qnext.models import locate

from .test_end_to_end import BASE, Real, real

__all__ = ["real"]

TEXTS = [
    ("Once upon a time, there was", " a little rabbit named Ana."),
    ("The capital of France is", " Paris"),
]


@pytest.fixture(scope="module")
def harness(real: Real) -> Any:
    with httpx.Client(
        base_url=real.url, headers={"Authorization": f"Bearer {real.key}"}, timeout=60
    ) as client:
        yield client


def encode(harness: httpx.Client, text: str) -> list[int]:
    told = harness.post("/tokenize", json={"prompt": text, "add_special_tokens": False})
    ids: list[int] = told.json()["tokens"]
    return ids


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_loglikelihoods_are_the_models_own(real: Real, harness: httpx.Client, max_tokens: int) -> None:
    model = Qwen3Next.from_pretrained(locate("tiny-base"), dtype=torch.float32)
    contexts = [encode(harness, context) for context, _ in TEXTS]
    wholes = [ids + encode(harness, more) for ids, (_, more) in zip(contexts, TEXTS, strict=True)]
    asked = {
        "model": BASE,
        "prompt": wholes,
        "temperature": 0,
        "max_tokens": max_tokens,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    for _ in range(2):  # the second time everything is in the cache
        answer = harness.post("/v1/completions", json=asked).json()
        for context, whole, choice in zip(contexts, wholes, answer["choices"], strict=True):
            told = choice["logprobs"]
            assert len(told["tokens"]) == len(whole) + max_tokens
            assert choice["text"].startswith("".join(told["tokens"][: len(whole)]))
            with torch.inference_mode():
                expected = model.logits(model(torch.tensor(whole)))[:-1].log_softmax(-1)
            right = expected.gather(-1, torch.tensor(whole[1:])[:, None])[:, 0]
            found = torch.tensor(told["token_logprobs"][1 : len(whole)])
            torch.testing.assert_close(found, right, atol=0.05, rtol=0.02)  # packed weights, bf16 caches
            begin = len(context)
            score = sum(told["token_logprobs"][begin : len(whole)])
            assert score == pytest.approx(float(right[begin - 1 :].sum()), abs=0.2)
            best = [max(top.values()) for top in told["top_logprobs"][1 : len(whole)]]
            greedy = torch.tensor(best) == found
            clear = expected.topk(2).values.diff(dim=-1).abs()[:, 0] > 0.1
            assert torch.equal(greedy[clear], (expected.argmax(-1) == torch.tensor(whole[1:]))[clear])
    assert real.all_free()
