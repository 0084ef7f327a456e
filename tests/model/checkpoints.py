"""Tiny checkpoints in the published format, written with the `safetensors` library, for tests to read and to
break.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qnext.model.config import ModelConfig
from qnext.model.layout import layout

SINGLE = "model.safetensors"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"


def tiny_config(**changes: Any) -> dict[str, Any]:
    """A `config.json` of three linear layers and one of full attention, of a few thousand weights."""
    return {
        "architectures": ["Qwen3NextForCausalLM"],
        "model_type": "qwen3_next",
        "vocab_size": 40,
        "hidden_size": 16,
        "num_hidden_layers": 4,
        "full_attention_interval": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 4,
        "linear_value_head_dim": 6,
        "linear_conv_kernel_dim": 4,
        "num_experts": 3,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 5,
        "shared_expert_intermediate_size": 7,
        "intermediate_size": 9,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        **changes,
    }


def random_tensors(
    config: dict[str, Any], *, mtp: bool = True, dtype: torch.dtype = torch.bfloat16
) -> dict[str, Tensor]:
    """Random published tensors for a `config.json`."""
    generator = torch.Generator().manual_seed(0)
    entries = layout(ModelConfig.from_dict(config, mtp_layers=int(mtp)))
    return {entry.name: torch.randn(entry.shape, generator=generator).to(dtype) for entry in entries}


def write(path: Path, config: dict[str, Any], tensors: dict[str, Tensor], *, sharded: bool = False) -> Path:
    """Write a checkpoint directory: one file, or two shards (every second tensor in each) and an index."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    if not sharded:
        save_file(tensors, path / SINGLE)
        return path
    names = sorted(tensors)
    places = {name: SHARDS[i % 2] for i, name in enumerate(names)}
    for shard in SHARDS:
        save_file({name: tensors[name] for name in names if places[name] == shard}, path / shard)
    (path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return path


def quantise(weight: Tensor, block: int = 128) -> tuple[Tensor, Tensor]:
    """A matrix as float8 and one float32 scale for each square block."""
    rows, columns = weight.shape
    scale = torch.zeros(-(-rows // block), -(-columns // block))
    out = torch.zeros(rows, columns, dtype=torch.float8_e4m3fn)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            window = slice(i * block, (i + 1) * block), slice(j * block, (j + 1) * block)
            scale[i, j] = weight[window].float().abs().max() / 448
            out[window] = (weight[window].float() / scale[i, j]).to(torch.float8_e4m3fn)
    return out, scale


def fp8_checkpoint(path: Path, config: dict[str, Any], *, block: int = 128) -> Path:
    """A checkpoint whose projections and experts are block float8."""
    tensors = random_tensors(config)
    for name in list(tensors):
        if name.endswith("proj.weight") or name.endswith("in_proj_qkvz.weight"):
            tensors[name], tensors[name + "_scale_inv"] = quantise(tensors[name], block)
    stated = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [block] * 2,
    }
    return write(path, {**config, "quantization_config": stated}, tensors)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint directory, as the `safetensors` library reads it."""
    return {name: tensor for file in path.glob("*.safetensors") for name, tensor in load_file(file).items()}


def edit_json(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    table = json.loads(path.read_text())
    edit(table)
    path.write_text(json.dumps(table))


def edit_tensors(file: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)


def edit_header(file: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change what a safetensors file says of its data, and leave the data."""
    raw = file.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    edit(header)
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + raw[end:])
