"""Random checkpoints: legal, readable by us and by `transformers`, the same for the same seed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen3NextForCausalLM

from benchmarks.make_checkpoint import PRESETS, make_checkpoint
from qnext.model.config import ModelConfig
from qnext.model.qwen3_next import Qwen3Next

TOY = {
    **PRESETS["tiny"],
    "hidden_size": 64,
    "num_experts": 6,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
}


def digest(path: Path) -> list[str]:
    return [hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(path.iterdir())]


def test_both_read_it_and_agree(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, ModelConfig.from_dict(TOY), shard_bytes=500_000)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    ours = Qwen3Next.from_pretrained(tmp_path, dtype=torch.float32)
    theirs = Qwen3NextForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.randint(0, 4096, (70,), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = ours.logits(ours(ids))
        torch.testing.assert_close(logits, theirs(ids[None]).logits[0], rtol=1e-4, atol=1e-4)
    assert 0.05 < logits.std() < 5  # neither dead nor exploded


def test_head_and_tokenizer(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, ModelConfig.from_dict(TOY, mtp_layers=1))
    model = Qwen3Next.from_pretrained(tmp_path)
    assert model.config.mtp_layers == 1
    assert len(AutoTokenizer.from_pretrained(tmp_path)("hello there").input_ids) > 0


def test_a_vocabulary_too_small_goes_without_tokenizer(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, ModelConfig.from_dict({**TOY, "vocab_size": 100}))
    assert not (tmp_path / "tokenizer.json").exists()


def test_the_seed_decides(tmp_path: Path) -> None:
    config = ModelConfig.from_dict(TOY)
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        make_checkpoint(tmp_path / name, config, seed=seed)
    assert digest(tmp_path / "one") == digest(tmp_path / "same")
    assert digest(tmp_path / "one") != digest(tmp_path / "other")
