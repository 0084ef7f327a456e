"""The benchmark of training: both sides learn from the same tokens and weights, and both take their steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Qwen3NextForCausalLM

from benchmarks.make_checkpoint import make_checkpoint
from benchmarks.peers.collations import padded
from benchmarks.training import Load, Rows, measure
from qnext.model.config import ModelConfig
from qnext.model.qwen3_next import Qwen3Next
from qnext.train import loss

from .test_make_checkpoint import TOY


@pytest.mark.parametrize("documents", ["mixed", "even"])
def test_both_sides_begin_with_the_same_loss(documents: str, tmp_path: Path) -> None:
    load = Load(TOY, documents, tokens=600)
    make_checkpoint(tmp_path, ModelConfig.from_dict(TOY))
    batch = Rows(load, step=4).next()
    assert len(batch.ids) == load.tokens and batch.lengths == tuple(map(len, load.row(4)))
    model = Qwen3Next.from_pretrained(tmp_path, dtype=torch.float32)
    theirs = Qwen3NextForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    with torch.inference_mode():
        _, tally = loss.total(model, batch, denominator=1.0, mtp_weight=0.0, router_weight=0.0)
        wanted = theirs(**padded([load.row(4)])).loss
    assert tally.nll / tally.weight == pytest.approx(float(wanted), rel=1e-4)


def test_a_line_for_each_peer() -> None:
    load = Load(TOY, tokens=200, steps=1, dtype="float32")
    peers = ["eager-padded", "eager-flattened"]
    lines = measure(load, peers)
    assert [line["peer"] for line in lines] == peers
    for line in lines:
        for side in ("theirs", "ours", "ours_with_mtp"):
            assert 0 < line[side]["optimiser_seconds"] < line[side]["seconds"]
        assert line["ratio"] == pytest.approx(line["theirs"]["seconds"] / line["ours"]["seconds"], rel=0.05)
