"""A checkpoint with its routed experts as int8, in the form that vLLM reads without a detour by bfloat16.

    python benchmarks/peers/int8_experts.py CHECKPOINT DIRECTORY

Called by hand where memory does not hold what vLLM needs to make them itself while loading. Each row has a
scale, its largest number over 127 (`compressed-tensors`, int-quantized); all else is copied as it is.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

EXPERT = re.compile(r"\.mlp\.experts\.\d+\.\w+_proj\.weight$")
KEPT = ["lm_head", "re:.*self_attn.*", "re:.*linear_attn.*", "re:.*shared_expert.*", "re:.*mlp\\.gate$"]
SCHEME: dict[str, Any] = {"num_bits": 8, "type": "int", "symmetric": True}
STATED = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": KEPT,
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**SCHEME, "strategy": "channel", "dynamic": False},
            "input_activations": {**SCHEME, "strategy": "token", "dynamic": True},
        }
    },
}


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers from -127 to 127, and the scale of each row [rows, 1]."""
    wide = weight.float()
    scale = wide.abs().amax(1, keepdim=True).clamp(min=1e-8) / 127
    return (wide / scale).round().to(torch.int8), scale


def convert(source: Path, target: Path) -> None:
    """Shard by shard; holds one shard at a time."""
    target.mkdir(parents=True, exist_ok=True)
    places: dict[str, str] = {}
    for shard in sorted(source.glob("model*.safetensors")):
        tensors: dict[str, Tensor] = {}
        with safe_open(shard, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                weight = file.get_tensor(name)
                if EXPERT.search(name):
                    tensors[name], tensors[f"{name}_scale"] = quantise(weight)
                else:
                    tensors[name] = weight
        save_file(tensors, target / shard.name, {"format": "pt"})
        places.update(dict.fromkeys(tensors, shard.name))
    index = {"metadata": {}, "weight_map": places}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "quantization_config": STATED}))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: int8_experts.py CHECKPOINT DIRECTORY")
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
