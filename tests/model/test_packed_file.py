"""Packed checkpoints: used as they lie in the file; every byte accounted for; whatever is broken is named."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from qnext.kernels.packed import Packed, check
from qnext.model import packed_file
from qnext.model.conversion import convert
from qnext.model.packed_file import PackedWriter, is_packed, open_packed
from qnext.model.quant import Parts, pack_model
from qnext.model.qwen3_next import Qwen3Next
from qnext.model.scheme import Scheme

from .checkpoints import SINGLE, edit_header, edit_json, edit_tensors, fp8_checkpoint, tiny_config
from .tiny import tiny_model

SCHEME = Scheme("int4", 32, (("layers.1.*", "int8"), ("lm_head", "bfloat16")))


def save(path: Path, scheme: Scheme = SCHEME, **changes: Any) -> tuple[Qwen3Next, Parts]:
    model = tiny_model(**changes)
    packed = pack_model(model, scheme)
    path.mkdir()
    PackedWriter(model.config, scheme).write(path, packed.items(), model.config.to_dict())
    return model, packed


def assert_same(found: Parts, expected: Parts) -> None:
    assert list(found) == list(expected)
    for name, one in expected.items():
        other = found[name]
        if isinstance(one, Packed):
            assert isinstance(other, Packed)
            check(other, name)
            assert one[2:] == other[2:]
            assert torch.equal(one.data, other.data) and torch.equal(one.scales, other.scales), name
        else:
            assert isinstance(other, torch.Tensor) and torch.equal(one, other), name


@pytest.mark.parametrize(
    "changes", [{}, {"mtp_layers": 0}, {"tie_word_embeddings": True, "attention_bias": True}]
)
def test_what_was_written_is_what_is_opened(tmp_path: Path, changes: dict[str, Any]) -> None:
    model, packed = save(tmp_path / "x", **changes)
    opened = open_packed(tmp_path / "x")
    assert (opened.config, opened.scheme) == (model.config, SCHEME)
    assert_same(opened.parts, packed)
    again = Qwen3Next.from_pretrained(tmp_path / "x", dtype=torch.float32)
    twin = Qwen3Next.from_packed(model.config, packed)
    for one, other in zip(again.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)


def test_every_tensor_is_aligned_in_shards_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    packed = pack_model(model, SCHEME)
    PackedWriter(model.config, SCHEME, max_shard_bytes=40_000).write(
        tmp_path, packed.items(), model.config.to_dict()
    )
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    opened = open_packed(tmp_path)
    assert_same(opened.parts, packed)
    for each in opened.parts.values():
        tensors = [each.data, each.scales] if isinstance(each, Packed) else [each]
        assert all(tensor.data_ptr() % 64 == 0 for tensor in tensors if tensor.numel())


def test_other_readers_can_read_it(tmp_path: Path) -> None:
    _, packed = save(tmp_path / "x")
    with safe_open(tmp_path / "x" / SINGLE, "pt") as file:
        name = "layers.0.mlp.experts.down_proj"
        found = packed[name]
        assert isinstance(found, Packed)
        assert torch.equal(file.get_tensor(f"{name}.data"), found.data)
        assert torch.equal(file.get_tensor(f"{name}.scales"), found.scales)


_OPEN = """
import resource, sys, torch
from pathlib import Path
from qnext.kernels.packed import Packed
from qnext.model.packed_file import open_packed
def resident(): return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
size, before = (Path(sys.argv[1]) / "model.safetensors").stat().st_size, resident()
parts = open_packed(sys.argv[1]).parts
tensors = [part.data if isinstance(part, Packed) else part for part in parts.values()]
assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
for tensor in tensors:
    tensor.view(-1)[::16].sum()
assert resident() - before < 1.15 * size + 20e6, (resident() - before, size)
parts["embed_tokens"][5] = 7.0  # the process's own page: the file does not change
"""


def test_one_copy_is_held_and_the_file_is_safe(tmp_path: Path) -> None:
    save(tmp_path / "x", Scheme("float32"), vocab_size=500_000, tie_word_embeddings=True)
    before = (tmp_path / "x" / SINGLE).stat().st_mtime_ns
    subprocess.run([sys.executable, "-c", _OPEN, str(tmp_path / "x")], check=True)
    assert (tmp_path / "x" / SINGLE).stat().st_mtime_ns == before
    with safe_open(tmp_path / "x" / SINGLE, "pt") as file:
        assert not (file.get_slice("embed_tokens")[5:6] == 7.0).any()


def test_only_packed_checkpoints_are_packed(tmp_path: Path) -> None:
    assert not is_packed(tmp_path)
    assert not is_packed(fp8_checkpoint(tmp_path / "fp8", tiny_config()))
    save(tmp_path / "x")
    assert is_packed(tmp_path / "x")


NAME = "layers.0.linear_attn.out_proj"


def quantisation(**changes: Any) -> Callable[[Path], None]:
    return lambda path: edit_json(
        path / "config.json", lambda table: table["quantization_config"].update(changes)
    )


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda path: edit_json(path / "config.json", lambda table: table.update(changes))


def tensors(edit: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    return lambda path: edit_tensors(path / SINGLE, edit)


def header(edit: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    return lambda path: edit_header(path / SINGLE, edit)


def cut(path: Path) -> None:
    os.truncate(path / SINGLE, (path / SINGLE).stat().st_size - 100)


def scribble(path: Path) -> None:
    with open(path / SINGLE, "r+b") as file:
        file.write(b"GGUF" * 4)


def shift(path: Path) -> None:
    edit_header(path / SINGLE, lambda table: table.update(__metadata__={"by": "another tool"}))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (cut, r"model.safetensors: cut short: tensor '.*' ends at byte"),
        (scribble, r"model.safetensors: not a safetensors file"),
        (shift, r"model.safetensors: tensor '.*' begins at byte \d+, not at a multiple of 64"),
        (quantisation(version=3), r"quantization_config.version is 3, this qnext reads 1"),
        (
            quantisation(kind="int2"),
            r"config.json: quantization_config: kind is 'int2': use one of int4, int8",
        ),
        (
            quantisation(kind="int8"),
            r"'layers.0.linear_attn.qkvz_proj.data' is torch.uint8 \[8, 8, 64\], but",
        ),
        (quantisation(group=64), r"tensor 'layers.0.linear_attn.qkvz_proj.scales' .* group 64.* make it"),
        (quantisation(rules=[]), r"tensor 'layers.1.linear_attn.qkvz_proj.data' .* make it"),
        (config(hidden_size=64), r"tensor 'embed_tokens' is .*\[97, 48\], but config.json .* \[97, 64\]"),
        (config(quantization_config=None), r"config.json: has no quantization_config"),
        (tensors(lambda table: table.pop(f"{NAME}.scales")), rf"tensor '{NAME}.scales' is missing"),
        (tensors(lambda table: table.update(extra=torch.zeros(16))), r"unexpected tensor 'extra'"),
        (header(lambda table: table[f"{NAME}.data"].update(dtype="I8")), r"dtype 'I8', supported are .* U8"),
        (lambda path: (path / SINGLE).unlink(), r"model.safetensors: file is missing"),
    ],
)
def test_refusals(tmp_path: Path, harm: Callable[[Path], None], message: str) -> None:
    save(tmp_path / "x")
    harm(tmp_path / "x")
    with pytest.raises(ValueError, match=message):
        open_packed(tmp_path / "x")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    fp8_checkpoint(tmp_path / "source", tiny_config())
    monkeypatch.setattr(packed_file.os, "fsync", fail)
    monkeypatch.setattr("qnext.model.shard.os.fsync", fail)
    with pytest.raises(ValueError, match="out: No space left on device; nothing was written"):
        convert(tmp_path / "source", tmp_path / "out", Scheme())
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_disk_too_small_is_told_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fp8_checkpoint(tmp_path / "source", tiny_config())
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(packed_file.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=r"the disk has 0\.0 GiB free"):
        convert(tmp_path / "source", tmp_path / "out", Scheme())
