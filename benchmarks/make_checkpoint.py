"""Random checkpoints of the published layout, at any shape, for measuring qnext and its peers on one file.

    python benchmarks/make_checkpoint.py DIRECTORY [--preset mid|tiny] [--mtp] [--seed N] [field=value …]

`mid` is four real layers (three linear, one of full attention; 512 experts; 151,936 words; 14.4 GB), `tiny` a
network of a few million weights; `field=value` changes a field of config.json. Invariant: the same arguments
give the same bytes. Weights are drawn once, as a block of normal numbers, and every tensor is a stretch of
that block from a random place on: seven billion draws would take minutes and measure nothing else.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qnext.model.checkpoint import CONFIG, INDEX, SINGLE
from qnext.model.config import ModelConfig
from qnext.model.layout import Entry, layout
from qnext.model.shard import write_shard
from qnext.models import locate

TINY: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 64,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 128,
    "shared_expert_intermediate_size": 128,
    "intermediate_size": 512,
}
REAL: dict[str, Any] = {"num_hidden_layers": 4, "intermediate_size": 5120}
PUBLISHED: dict[str, Any] = {"rope_theta": 1e7, "max_position_embeddings": 262144}
PRESETS = {"mid": {**PUBLISHED, **REAL}, "tiny": {**PUBLISHED, **TINY}}
COMPANIONS = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")
SHARD_BYTES = 4_000_000_000
BLOCK = 1 << 26  # numbers drawn; a tensor may take more than one stretch


@dataclass(frozen=True)
class Source:
    """Draws the numbers of a tensor, in pieces that need no memory of their own."""

    generator: torch.Generator
    block: Tensor
    config: ModelConfig

    @classmethod
    def seeded(cls, config: ModelConfig, seed: int) -> Source:
        generator = torch.Generator().manual_seed(seed)
        total = sum(math.prod(entry.shape) for entry in layout(config))
        block = torch.randn(min(BLOCK, total + 1), generator=generator) * config.initializer_range
        return cls(generator, block.to(torch.bfloat16), config)

    def pieces(self, entry: Entry) -> Iterator[Tensor]:
        """The values of a tensor: sane starts for norms and decays, normal numbers for all else."""
        leaf = entry.name.removesuffix(".weight")
        left = math.prod(entry.shape)
        if leaf.endswith("A_log"):
            yield self._uniform(left, 1, 16).log().to(torch.bfloat16)
        elif leaf.endswith("dt_bias"):
            # steps of 0.001 to 0.1: the state remembers hundreds of tokens, as a trained one does
            step = self._uniform(left, math.log(1e-3), math.log(1e-1)).exp()
            yield step.expm1().log().to(torch.bfloat16)
        elif leaf.endswith("linear_attn.norm"):
            yield self._uniform(left, 0.9, 1.1).to(torch.bfloat16)
        elif leaf.endswith("conv1d"):
            yield self._uniform(left, -0.5, 0.5).to(torch.bfloat16)
        else:
            while left:
                start = int(torch.randint(len(self.block), (1,), generator=self.generator))
                piece = self.block[start : start + left]
                left -= len(piece)
                yield piece

    def _uniform(self, count: int, low: float, high: float) -> Tensor:
        return torch.rand(count, generator=self.generator) * (high - low) + low


def make_checkpoint(
    path: Path, config: ModelConfig, *, seed: int = 0, shard_bytes: int = SHARD_BYTES, tokenizer: bool = True
) -> int:
    """Write config, weights and, if the vocabulary has room for it, the embedded tokenizer; returns bytes."""
    path.mkdir(parents=True, exist_ok=True)
    source, shards, total = Source.seeded(config, seed), [list[Entry]()], 0
    filled = 0
    for entry in layout(config):
        nbytes = 2 * math.prod(entry.shape)
        if shards[-1] and filled + nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled, total = filled + nbytes, total + nbytes
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {entry.name: (torch.bfloat16, entry.shape) for entry in shard}
        write_shard(path / name, tensors, (piece for entry in shard for piece in source.pieces(entry)))
        places.update(dict.fromkeys(tensors, name))
    if len(shards) > 1:
        _write_json(
            path / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        )
    embedded = locate("tiny-instruct")
    table = config.to_dict()
    words = json.loads((embedded / CONFIG).read_text())
    if tokenizer and config.vocab_size >= words["vocab_size"]:
        for name in COMPANIONS:
            shutil.copyfile(embedded / name, path / name)
        table |= {name: words[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(path / CONFIG, table)
    return total


def _write_json(path: Path, table: dict[str, Any]) -> None:
    path.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--preset", choices=PRESETS, default="mid")
    parser.add_argument("--mtp", action="store_true", help="with a head for multi-token prediction")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("changes", nargs="*", metavar="field=value", help="of config.json")
    given = parser.parse_args()
    changes = {name: json.loads(value) for name, _, value in (each.partition("=") for each in given.changes)}
    config = ModelConfig.from_dict({**PRESETS[given.preset], **changes}, mtp_layers=int(given.mtp))
    total = make_checkpoint(given.directory, config, seed=given.seed)
    print(f"{given.directory}: {total / 1e9:.1f} GB", file=sys.stderr)


if __name__ == "__main__":
    main()
