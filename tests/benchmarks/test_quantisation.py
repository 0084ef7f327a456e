"""The benchmark of rounding: its figures on a toy model fall as bits grow."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.quantisation import measure, scores
from qnext.model.qwen3_next import Qwen3Next
from tests.model.tiny import tiny_model, token_ids


def test_each_scheme_is_measured_against_floats(tmp_path: Path) -> None:
    tiny_model().save_pretrained(tmp_path)
    samples = [token_ids(30).tolist(), token_ids(20, seed=1).tolist()]
    exact, *lines = measure(tmp_path, samples, samples)
    assert exact["scheme"] == "float32"
    assert [line["calibrated"] for line in lines] == [False, False, False, True, False, True, False, True]
    errors = [line["logits_error"] for line in lines]
    assert all(isinstance(error, float) for error in errors)
    assert errors[0] < errors[1] < errors[2]  # type: ignore[operator]


def test_perplexity_is_that_of_each_text_alone(tmp_path: Path) -> None:
    model: Qwen3Next = tiny_model()
    one, two = token_ids(30).tolist(), token_ids(20, seed=1).tolist()
    logits, perplexity = scores(model, [one, two])
    losses = []
    for ids in (one, two):
        alone = torch.log_softmax(model.logits(model(torch.tensor(ids))), -1)
        losses += [-alone[i, ids[i + 1]] for i in range(len(ids) - 1)]
    assert abs(perplexity - torch.stack(losses).mean().exp()) < 1e-2
    assert logits.shape == (50, model.config.vocab_size)
