"""Conversion: a checkpoint read in sections gives the parts that the whole model gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from qnext.model.conversion import convert, pack_checkpoint
from qnext.model.packed_file import open_packed
from qnext.model.quant import pack_model
from qnext.model.qwen3_next import Qwen3Next
from qnext.model.scheme import Scheme
from qnext.models import locate

from .checkpoints import fp8_checkpoint, random_tensors, tiny_config, write
from .test_packed_file import assert_same

SCHEME = Scheme("int4", 32)


def check_conversion(source: Path, target: Path, dtype: torch.dtype) -> None:
    convert(source, target, SCHEME)
    opened = open_packed(target)
    model = Qwen3Next.from_pretrained(source)
    assert_same(opened.parts, pack_model(model, SCHEME))
    assert opened.config == model.config
    config, packed = pack_checkpoint(source, SCHEME)
    assert_same(packed, opened.parts)
    assert config == opened.config
    assert json.loads((target / "config.json").read_text())["torch_dtype"] == str(dtype).removeprefix(
        "torch."
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("changes", [{}, {"mlp_only_layers": [1], "attention_bias": True}])
def test_plain_checkpoints(tmp_path: Path, dtype: torch.dtype, changes: dict[str, Any]) -> None:
    table = tiny_config(torch_dtype=str(dtype).removeprefix("torch."), **changes)
    write(tmp_path / "in", table, random_tensors(table, dtype=dtype), sharded=True)
    check_conversion(tmp_path / "in", tmp_path / "out", dtype)


def test_block_float8(tmp_path: Path) -> None:
    check_conversion(
        fp8_checkpoint(tmp_path / "in", tiny_config(), block=8), tmp_path / "out", torch.bfloat16
    )


def test_numbers_of_mixed_width_keep_their_own(tmp_path: Path) -> None:
    table = tiny_config()
    tensors = random_tensors(table)
    name = "layers.0.linear_attn.A_log"
    exact = tensors[f"model.{name}"] = torch.randn(4)
    _, packed = pack_checkpoint(write(tmp_path / "in", table, tensors), SCHEME)
    found = packed[name]
    assert isinstance(found, torch.Tensor) and torch.equal(found, exact)


def test_a_tied_checkpoint_with_companions_and_progress(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    source, target = locate("tiny-instruct"), tmp_path / "out"
    convert(source, target, SCHEME, progress=lambda done, total: told.append((done, total)))
    assert told == sorted(told) and told[-1][0] == told[-1][1]
    assert_same(open_packed(target).parts, pack_model(Qwen3Next.from_pretrained(source), SCHEME))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (target / name).read_bytes() == (source / name).read_bytes()
    with pytest.raises(ValueError, match="exists and is not empty"):
        convert(source, target, SCHEME)
    with pytest.raises(ValueError, match="is packed already"):
        convert(target, tmp_path / "again", SCHEME)


@pytest.mark.parametrize("method", ["awq", "gptq", "compressed-tensors"])
def test_other_methods_are_named(tmp_path: Path, method: str) -> None:
    table = tiny_config(quantization_config={"quant_method": method, "bits": 4, "group_size": 128})
    write(tmp_path / "in", table, random_tensors(table))
    with pytest.raises(
        ValueError, match=rf"quant_method is '{method}', supported are 'fp8' \(in blocks\), plain"
    ):
        convert(tmp_path / "in", tmp_path / "out", SCHEME)


def test_a_weight_that_is_no_number_is_refused(tmp_path: Path) -> None:
    table = tiny_config()
    tensors = random_tensors(table)
    tensors["model.layers.2.mlp.experts.1.down_proj.weight"][3, 2] = torch.nan
    write(tmp_path / "in", table, tensors)
    with pytest.raises(
        ValueError, match=r"2\.mlp\.experts\.down_proj cannot be int4: a weight is not a finite"
    ):
        convert(tmp_path / "in", tmp_path / "out", SCHEME)
    assert not (tmp_path / "out").exists()
