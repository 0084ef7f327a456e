"""The weights, judged by the files of transformers and by the published layout in plain tensor words."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

from qnext.model import weights
from qnext.model.checkpoint import Checkpoint, mtp_layers_of
from qnext.model.config import ModelConfig
from qnext.model.qwen3_next import Qwen3Next
from qnext.model.shard import write_shard
from qnext.model.weights import load_weights, save_checkpoint, save_weights

from .checkpoints import INDEX, SINGLE, random_tensors, read_tensors, tiny_config, write

BASE: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 4,
    "linear_value_head_dim": 6,
    "num_experts": 3,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 5,
    "shared_expert_intermediate_size": 7,
    "intermediate_size": 9,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True, "num_hidden_layers": 5, "linear_num_value_heads": 2},
    "dense layers": {"mlp_only_layers": [3], "decoder_sparse_step": 2, "num_experts": 4},
    "other heads and bias": {
        "attention_bias": True,
        "num_attention_heads": 6,
        "num_key_value_heads": 1,
        "linear_num_key_heads": 3,
        "linear_num_value_heads": 12,
        "linear_conv_kernel_dim": 3,
        "layer_types": ["full_attention", "linear_attention", "linear_attention", "full_attention"],
    },
}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether two sets of tensors have the same names and the same bits."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and torch.equal(one[name].contiguous().view(torch.uint8), other[name].contiguous().view(torch.uint8))
        for name in one
    )


@pytest.fixture(scope="module", params=list(VARIANTS.values()), ids=list(VARIANTS))
def published(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that transformers wrote, of random bfloat16 weights."""
    torch.manual_seed(0)
    model = Qwen3NextForCausalLM(Qwen3NextConfig(**BASE | request.param)).bfloat16()
    for parameter in model.parameters():  # biases and norms too
        torch.nn.init.normal_(parameter)
    path = tmp_path_factory.mktemp("published")
    model.save_pretrained(path)
    return path


def test_files_of_transformers_come_back_bit_for_bit(published: Path, tmp_path: Path) -> None:
    model = Qwen3Next.from_pretrained(published)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    save_weights(model, tmp_path)
    assert same(read_tensors(tmp_path), read_tensors(published))


def test_transformers_reads_what_we_write(published: Path, tmp_path: Path) -> None:
    Qwen3Next.from_pretrained(published).save_pretrained(tmp_path)
    theirs = Qwen3NextForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert same(
        theirs.state_dict(), Qwen3NextForCausalLM.from_pretrained(published, dtype="auto").state_dict()
    )


def untangle(stored: Tensor, heads: int, sizes: list[int]) -> list[Tensor]:
    """Rows stored head by head, each head's split by `sizes` -> one matrix (or vector) for each size."""
    by_head = stored.view(heads, sum(sizes), *stored.shape[1:])
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [by_head[:, end - size : end].flatten(0, 1) for size, end in zip(sizes, ends, strict=True)]


def test_projections_are_untangled(tmp_path: Path) -> None:
    config = tiny_config(attention_bias=True)
    tensors = random_tensors(config)
    ours = dict(Qwen3Next.from_pretrained(write(tmp_path, config, tensors)).named_parameters())
    for leaf in ("weight", "bias"):
        stored = tensors[f"model.layers.3.self_attn.q_proj.{leaf}"]
        query, gate = untangle(stored, heads=2, sizes=[8, 8])
        assert torch.equal(ours[f"layers.3.self_attn.q_proj.{leaf}"], query)
        assert torch.equal(ours[f"layers.3.self_attn.gate_proj.{leaf}"], gate)
    for name, sizes in (("qkvz", [4, 4, 12, 12]), ("ba", [2, 2])):
        stored = tensors[f"model.layers.0.linear_attn.in_proj_{name}.weight"]
        expected = torch.cat(untangle(stored, heads=2, sizes=sizes))
        assert torch.equal(ours[f"layers.0.linear_attn.{name}_proj.weight"], expected)
    assert torch.equal(
        ours["layers.0.linear_attn.conv1d.weight"], tensors["model.layers.0.linear_attn.conv1d.weight"][:, 0]
    )


def test_experts_are_stacked(tmp_path: Path) -> None:
    tensors = random_tensors(tiny_config(mlp_only_layers=[0]))
    ours = dict(
        Qwen3Next.from_pretrained(
            write(tmp_path, tiny_config(mlp_only_layers=[0]), tensors)
        ).named_parameters()
    )

    def gate_up(name: str) -> Tensor:
        return torch.cat([tensors[f"{name}.gate_proj.weight"], tensors[f"{name}.up_proj.weight"]])

    for prefix, published in (
        ("layers.1.mlp", "model.layers.1.mlp"),
        ("mtp.layers.0.mlp", "mtp.layers.0.mlp"),
    ):
        stacked = torch.stack([gate_up(f"{published}.experts.{expert}") for expert in range(3)])
        assert torch.equal(ours[f"{prefix}.experts.gate_up_proj"], stacked)
        down = torch.stack([tensors[f"{published}.experts.{expert}.down_proj.weight"] for expert in range(3)])
        assert torch.equal(ours[f"{prefix}.experts.down_proj"], down)
        shared = ours[f"{prefix}.shared_expert.gate_up_proj.weight"]
        assert torch.equal(shared, gate_up(f"{published}.shared_expert"))
    assert torch.equal(ours["layers.0.mlp.gate_up_proj.weight"], gate_up("model.layers.0.mlp"))


@pytest.mark.parametrize("sharded", [False, True])
def test_mtp_is_kept(tmp_path: Path, sharded: bool) -> None:
    tensors = random_tensors(tiny_config())
    model = Qwen3Next.from_pretrained(write(tmp_path / "source", tiny_config(), tensors, sharded=sharded))
    assert model.config.mtp_layers == 1
    model.save_pretrained(tmp_path / "copy")
    assert same(read_tensors(tmp_path / "copy"), tensors)
    assert Checkpoint(tmp_path / "copy").mtp_layers == 1


def test_without_mtp(tmp_path: Path) -> None:
    model = Qwen3Next.from_pretrained(
        write(tmp_path, tiny_config(), random_tensors(tiny_config(), mtp=False))
    )
    assert model.config.mtp_layers == 0
    assert mtp_layers_of(["mtp.norm.weight"]) == 1
    assert mtp_layers_of(["model.norm.weight", "model.mtp_like.weight"]) == 0


def test_an_equal_head_of_a_tied_checkpoint_is_accepted(tmp_path: Path) -> None:
    config = tiny_config(tie_word_embeddings=True)
    tensors = random_tensors(config)
    copy = tensors["model.embed_tokens.weight"].clone()
    model = Qwen3Next.from_pretrained(write(tmp_path / "source", config, {**tensors, "lm_head.weight": copy}))
    save_weights(model, tmp_path / "copy")
    assert same(read_tensors(tmp_path / "copy"), tensors)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("wanted", [torch.bfloat16, torch.float16, torch.float32])
def test_dtypes_are_converted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: torch.dtype, wanted: torch.dtype
) -> None:
    monkeypatch.setattr("qnext.model.rows.BLOCK", 200)  # several blocks for most tensors
    tensors = random_tensors(tiny_config(), dtype=stored)
    model = Qwen3Next.from_pretrained(write(tmp_path / "source", tiny_config(), tensors), dtype=wanted)
    save_weights(model, tmp_path / "copy")
    assert same(
        read_tensors(tmp_path / "copy"), {name: tensor.to(wanted) for name, tensor in tensors.items()}
    )


def test_mixed_dtypes(tmp_path: Path) -> None:
    """Without a wish, the dtype is that of most numbers; a model of several dtypes is written as it is."""
    config = tiny_config(hidden_size=15, moe_intermediate_size=4)  # a layer has an odd number of weights
    tensors = random_tensors(config)
    exact = {name: tensor.float() for name, tensor in tensors.items() if name.endswith("A_log")}
    path = write(tmp_path / "source", config, tensors | exact)
    assert Checkpoint(path).dtype == torch.bfloat16
    model = Qwen3Next.from_pretrained(path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    for name, parameter in model.named_parameters():
        if name.endswith("A_log"):
            parameter.data = parameter.data.float()
    load_weights(model, Checkpoint(path))
    save_checkpoint(model, tmp_path / "copy")
    assert same(read_tensors(tmp_path / "copy"), tensors | exact)
    stored = Checkpoint(tmp_path / "copy").tensors.values()
    assert [info for info in stored if info.offset % info.dtype.itemsize] == []


def test_shards_and_index(tmp_path: Path) -> None:
    path = write(tmp_path / "source", tiny_config(), random_tensors(tiny_config()))
    model = Qwen3Next.from_pretrained(path)
    save_checkpoint(model, tmp_path / "copy", max_shard_bytes=6000)
    files = sorted(file.name for file in (tmp_path / "copy").glob("*.safetensors"))
    assert len(files) > 3
    assert files == [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
    index = json.loads((tmp_path / "copy" / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(p.numel() * 2 for p in model.parameters())
    assert set(index["weight_map"].values()) == set(files)
    assert same(read_tensors(tmp_path / "copy"), read_tensors(path))
    assert same(dict(Qwen3Next.from_pretrained(tmp_path / "copy").state_dict()), dict(model.state_dict()))


def test_a_save_replaces_older_weights_and_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path, tiny_config(), random_tensors(tiny_config()))
    (path / "adapter_model.safetensors").write_text("not ours")
    model = Qwen3Next.from_pretrained(path)
    model.save_pretrained(path)
    save_checkpoint(model, path, max_shard_bytes=9000)
    assert not (path / SINGLE).exists()
    save_weights(model, path)
    assert {file.name for file in path.iterdir()} == {"config.json", SINGLE, "adapter_model.safetensors"}
    Qwen3Next.from_pretrained(path)


def test_a_save_that_fails_leaves_the_directory_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, tiny_config(), random_tensors(tiny_config()))
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    model = Qwen3Next.from_pretrained(path)
    torch.nn.init.zeros_(model.norm.weight)
    calls: list[Path] = []

    def full(file: Path, *args: Any) -> None:
        calls.append(file)
        write_shard(file, *args)
        if len(calls) == 2:
            raise OSError("no space left on device")

    monkeypatch.setattr(weights, "write_shard", full)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(model, path, max_shard_bytes=9000)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


def test_companions_are_copied(tmp_path: Path) -> None:
    source = write(tmp_path / "source", tiny_config(), random_tensors(tiny_config()))
    (source / "tokenizer.json").write_text("{}")
    (source / "README.md").write_text("a card of other weights")
    model = Qwen3Next.from_pretrained(source, dtype=torch.float32)
    save_checkpoint(model, tmp_path / "copy", source=source)
    assert {file.name for file in (tmp_path / "copy").iterdir()} == {"config.json", "tokenizer.json", SINGLE}
    assert json.loads((tmp_path / "copy" / "config.json").read_text())["torch_dtype"] == "float32"
    with pytest.raises(ValueError, match="nowhere"):
        save_checkpoint(model, tmp_path / "copy", source=tmp_path / "nowhere")


def test_what_the_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "source", tiny_config(), random_tensors(tiny_config()))
    model = Qwen3Next.from_pretrained(path, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"model\.embed_tokens\.weight is torch\.float64"):
        save_weights(model, tmp_path / "copy")
    assert list((tmp_path / "copy").iterdir()) == []


def test_the_checkpoint_must_be_that_of_the_model(tmp_path: Path) -> None:
    path = write(tmp_path, tiny_config(), random_tensors(tiny_config()))
    model = Qwen3Next(replace(ModelConfig.from_dict(tiny_config()), mtp_layers=0))
    before = model.norm.weight.clone()
    with pytest.raises(ValueError, match=r"unexpected tensor 'mtp\..*mtp_layers = 0"):
        load_weights(model, Checkpoint(path))
    assert torch.equal(model.norm.weight, before)


def test_a_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path, tiny_config(), random_tensors(tiny_config()))
    model, checkpoint = Qwen3Next.from_pretrained(path), Checkpoint(path)
    os.truncate(path / SINGLE, (path / SINGLE).stat().st_size - 100)
    with pytest.raises(ValueError, match=r"model\.safetensors: ends .* too early"):
        load_weights(model, checkpoint)
