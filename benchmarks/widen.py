"""A trained model in the widths of the published one: it answers as it did, at the published cost of a layer.

    python benchmarks/widen.py MODEL DIRECTORY --layers 8 [field=value …]

The embedded models are so small that a step of theirs is mostly what Python does; with this, speculation can
be measured where steps cost what they cost in earnest, and guesses are still right as often as a trained head
is. Every weight is set into a corner of a larger tensor of zeros, norms make up for the larger width, and
layers beyond the model's own add nothing. `field=value` changes the target's config.json.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from qnext.model.checkpoint import CONFIG, SINGLE
from qnext.model.config import ModelConfig
from qnext.model.layout import layout
from qnext.model.shard import write_shard
from qnext.models import locate

REAL: dict[str, Any] = {
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "moe_intermediate_size": 1280,  # 4 of 14 experts run where 10 published ones of 512 do
    "shared_expert_intermediate_size": 1280,
    "intermediate_size": 5120,
}
OUTPUTS = ("o_proj.weight", "out_proj.weight", "down_proj.weight")  # what a layer adds to the stream
COMPANIONS = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
# The axes of a tensor: H hidden, G key-value heads of width D, S queries for each, K and V linear key and
# value heads of widths C and U, R value heads a key head, E experts, I their width, J the shared one's and
# F that of a dense half, N words, T taps.
AXES = {
    "embed_tokens": "NH",
    "lm_head": "NH",
    "q_proj": "GS2DH",
    "k_proj": "GDH",
    "v_proj": "GDH",
    "o_proj": "HGSD",
    "in_proj_ba": "K2RH",
    "A_log": "V",
    "dt_bias": "V",
    "out_proj": "HVU",
    "gate": "EH",
    "shared_expert_gate": "1H",
    "gate_proj": "IH",
    "up_proj": "IH",
    "down_proj": "HI",
    "fc": "H2H",
}
Sizes = dict[str, int]


def sizes(config: ModelConfig) -> Sizes:
    values, keys = config.linear_num_value_heads, config.linear_num_key_heads
    groups, queries = config.num_key_value_heads, config.num_attention_heads
    return {
        **{"1": 1, "2": 2, "H": config.hidden_size, "F": config.intermediate_size},
        **{"G": groups, "S": queries // groups, "D": config.head_dim},
        **{"K": keys, "V": values, "R": values // keys},
        **{"C": config.linear_key_head_dim, "U": config.linear_value_head_dim, "E": config.num_experts},
        **{
            "I": config.moe_intermediate_size,
            "J": config.shared_expert_intermediate_size,
            "N": config.vocab_size,
            "T": config.linear_conv_kernel_dim,
        },
    }


def corner(tensor: Tensor, axes: str, old: Sizes, new: Sizes) -> Tensor:
    """Zeros of the new sizes with the tensor where all indices are small, flat."""
    found = torch.zeros([new[axis] for axis in axes])
    found[tuple(slice(old[axis]) for axis in axes)] = tensor.reshape([old[axis] for axis in axes])
    return found.flatten()


def placed(name: str, tensor: Tensor, old: Sizes, new: Sizes) -> Tensor:
    """A tensor of the small model as the wide one has it, flat."""
    leaf = name.removesuffix(".weight").rpartition(".")[2]
    if leaf == "in_proj_qkvz":  # for each key head its q, k, values and gates
        parts = ("KCH", "KCH", "KRUH", "KRUH")
        rows = [math.prod(old[axis] for axis in axes[1:-1]) for axes in parts]
        pieces = tensor.view(old["K"], -1, old["H"]).split(rows, 1)
        wide = [corner(piece, axes, old, new) for piece, axes in zip(pieces, parts, strict=True)]
        return torch.cat([piece.view(new["K"], -1, new["H"]) for piece in wide], 1).flatten()
    if leaf == "conv1d":  # all q, all k, all values
        places = ("KCT", "KCT", "VUT")
        pieces = tensor.split([old[axes[0]] * old[axes[1]] for axes in places])
        return torch.cat([corner(p, axes, old, new) for p, axes in zip(pieces, places, strict=True)])
    if "norm" not in leaf:
        width = "J" if "shared_expert." in name else "I" if "experts." in name else "F"
        return corner(tensor, AXES[leaf].replace("I", width), old, new)
    # The mean of the squares is less by as much as the row is longer. q also makes up for head_dim**-0.5.
    axis = "D" if leaf in ("q_norm", "k_norm") else "U" if "linear_attn" in name else "H"
    factor = 1.0 if leaf == "q_norm" else math.sqrt(old[axis] / new[axis])
    centre = 0.0 if axis == "U" else 1.0  # that one is not zero-centred
    return corner((tensor + centre) * factor - centre, axis, old, new)


def target(small: ModelConfig, layers: int, changes: dict[str, Any]) -> ModelConfig:
    """The shape of the wide model. Raises ValueError for one that would compute something else."""
    period = len(small.layer_types)
    if layers % period:
        raise ValueError(f"--layers is {layers}: give a multiple of the model's {period}")
    groups = {"num_key_value_heads": max(small.num_key_value_heads, REAL["num_key_value_heads"])}
    table = {**small.to_dict(), **REAL, **groups, **changes, "num_hidden_layers": layers}
    table["layer_types"] = list(small.layer_types) * (layers // period)
    table["mlp_only_layers"] = [layer for layer in range(layers) if layer % period in small.mlp_only_layers]
    table["partial_rotary_factor"] = small.head_dim * small.partial_rotary_factor / table["head_dim"]
    widths = ("linear_key_head_dim", "linear_value_head_dim")
    # What the delta rule says is small enough for eps to count, and smaller by the root of both widths.
    table["rms_norm_eps"] = small.rms_norm_eps * math.prod(
        getattr(small, each) / table[each] for each in widths
    )
    wide = ModelConfig.from_dict(table, mtp_layers=small.mtp_layers)
    if sizes(small)["R"] != sizes(wide)["R"] or sizes(small)["S"] > sizes(wide)["S"]:
        raise ValueError("the wide model needs as many value heads a key head, and as many queries a key")
    return wide


def widen(source: Path, path: Path, layers: int, changes: dict[str, Any]) -> int:
    """Write the wide checkpoint -> its bytes."""
    words, tensors = json.loads((source / CONFIG).read_text()), load_file(source / "model.safetensors")
    small = ModelConfig.from_dict(words, mtp_layers=int(any(name.startswith("mtp.") for name in tensors)))
    wide, period = target(small, layers, changes), len(small.layer_types)
    kinds = {each.name: torch.float32 if "norm" in each.name else torch.bfloat16 for each in layout(wide)}
    shapes = {each.name: (kinds[each.name], each.shape) for each in layout(wide)}

    def values() -> Iterator[Tensor]:
        for name, (dtype, shape) in shapes.items():
            parts = name.split(".")
            if name.startswith("model.layers."):
                parts[2], layer = str(int(parts[2]) % period), int(parts[2])
                if layer >= period and name.endswith(OUTPUTS):
                    yield torch.zeros(math.prod(shape), dtype=dtype)
                    continue
            own = ".".join(parts)
            yield placed(own, tensors[own].float(), sizes(small), sizes(wide)).to(dtype)

    path.mkdir(parents=True, exist_ok=True)
    write_shard(path / SINGLE, shapes, values())
    for name in COMPANIONS:
        shutil.copyfile(source / name, path / name)
    table = wide.to_dict() | {name: words[name] for name in words if name.endswith("_token_id")}
    (path / CONFIG).write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
    return sum(math.prod(shape) * dtype.itemsize for dtype, shape in shapes.values())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--layers", type=int, required=True, help="a multiple of the model's own")
    parser.add_argument("changes", nargs="*", metavar="field=value", help="of config.json")
    given = parser.parse_args()
    changes = {name: json.loads(value) for name, _, value in (each.partition("=") for each in given.changes)}
    total = widen(locate(given.model), given.directory, given.layers, changes)
    print(f"{given.directory}: {total / 1e9:.1f} GB", file=sys.stderr)


if __name__ == "__main__":
    main()
