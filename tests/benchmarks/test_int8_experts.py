"""Experts as int8: near the numbers they were made from, and nothing else changed."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.make_checkpoint import make_checkpoint
from benchmarks.peers.int8_experts import convert, quantise
from qnext.model.config import ModelConfig

from .test_make_checkpoint import TOY


def test_rows_are_near_and_zero_stays_zero() -> None:
    weight = torch.randn(5, 33, generator=torch.Generator().manual_seed(0))
    weight[2] = 0
    codes, scale = quantise(weight)
    assert codes.dtype == torch.int8 and scale.shape == (5, 1)
    assert ((codes * scale - weight).abs() <= scale / 2 * 1.001).all()


def test_only_routed_experts_change(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "in", ModelConfig.from_dict(TOY))
    convert(tmp_path / "in", tmp_path / "out")
    before = load_file(tmp_path / "in" / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    experts = {name for name in before if ".experts." in name}
    assert after.keys() == before.keys() | {f"{name}_scale" for name in experts}
    for name, weight in before.items():
        assert after[name].dtype == (torch.int8 if name in experts else torch.bfloat16)
        if name not in experts:
            assert torch.equal(after[name], weight)
    stated = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert stated["quant_method"] == "compressed-tensors"
