"""What a network of a given shape weighs: parameters in all and per token, bytes of weights and of caches.

Used by `cli info`. Invariant: counted from the layout of the checkpoint, not from formulas of its own.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from .checkpoint import Checkpoint
from .config import ModelConfig
from .layout import layout
from .packed_file import inspect_packed, is_packed
from .packed_layout import parts
from .quant import empty
from .scheme import Scheme
from .state import StateSize

_EXPERT = re.compile(r"\.experts\.\d+\.")
ITEMSIZE = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Summary:
    """Parameter counts. `active` is what one token uses in the trunk, the output matrix included, the
    embedding table (of which it reads one row) not; `state` is for caches of the checkpoint's own dtype."""

    trunk: int
    mtp: int
    active: int
    weight_bytes: int
    state: StateSize

    @classmethod
    def of(cls, config: ModelConfig) -> Summary:
        """Counts for a shape; `config.mtp_layers` says whether there is an MTP head."""
        trunk = mtp = experts = 0
        for entry in layout(config):
            count = math.prod(entry.shape)
            if entry.name.startswith("mtp."):
                mtp += count
            else:
                trunk += count
                experts += count if _EXPERT.search(entry.name) else 0
        idle = (
            experts // config.num_experts * (config.num_experts - config.num_experts_per_tok)
            if experts
            else 0
        )
        table = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
        size = ITEMSIZE[config.dtype]
        return cls(trunk, mtp, trunk - idle - table, (trunk + mtp) * size, StateSize.of(config, size))

    def describe(self, config: ModelConfig) -> list[tuple[str, str]]:
        """Lines of (label, text) for people."""
        full, linear = (config.layer_types.count(kind) for kind in ("full_attention", "linear_attention"))
        layers = f"{config.num_hidden_layers} ({linear} Gated DeltaNet, {full} gated attention)"
        experts = f"{config.num_experts}, {config.num_experts_per_tok} a token, and a shared one"
        return [
            ("architecture", "Qwen3-Next"),
            ("layers", layers),
            ("hidden size", str(config.hidden_size)),
            ("experts", experts if config.num_experts else "none: every layer is dense"),
            ("vocabulary", f"{config.vocab_size:,}"),
            ("context", f"{config.max_position_embeddings:,} tokens"),
            ("parameters", f"{_count(self.trunk)} trunk + {_count(self.mtp)} MTP"),
            ("active", f"{_count(self.active)} a token (output matrix included, embedding table not)"),
            ("weights", f"{_bytes(self.weight_bytes)} in {config.dtype}"),
            ("KV cache", f"{_bytes(self.state.kv_token)} a token"),
            ("delta state", f"{_bytes(self.state.delta)} a sequence in float32"),
            ("conv state", f"{_bytes(self.state.conv)} a sequence"),
        ]


def inspect(path: Path) -> list[tuple[str, str]]:
    """Lines of (label, text) for a checkpoint directory, a packed one, or a bare config.json. Raises
    ValueError."""
    if path.is_dir() and is_packed(path):
        config, scheme, _ = inspect_packed(path)
        packed = dict(describe_packed(config, scheme))
        return list({**dict(Summary.of(config).describe(config)), **packed}.items())
    config = read_config(path)
    return Summary.of(config).describe(config)


def read_config(path: Path) -> ModelConfig:
    """The shape that a checkpoint directory or a bare config.json describes. Raises ValueError."""
    if path.is_dir() and any(path.glob("*.safetensors")):
        checkpoint = Checkpoint(path)
        return ModelConfig.from_dict(checkpoint.config_dict, mtp_layers=checkpoint.mtp_layers)
    file = path / "config.json" if path.is_dir() else path
    try:
        return ModelConfig.from_dict(json.loads(file.read_text("utf-8")))
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}: give a directory or its config.json") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: not JSON ({error})") from None


def describe_packed(config: ModelConfig, scheme: Scheme) -> list[tuple[str, str]]:
    """Lines of (label, text) for people: the scheme of a packed model, and bytes of each kind of number."""
    sizes: Counter[str] = Counter()
    for part in parts(config):
        if part.packed:
            sizes[scheme.kind_of(part.name)] += empty(part, scheme, "meta").bytes
        else:
            kind = "float32" if part.form == "vector" else scheme.plain
            sizes[kind] += math.prod(part.shape) * ITEMSIZE[kind]
    each = ", ".join(f"{_bytes(size)} in {kind}" for kind, size in sizes.most_common())
    return [("quantised", scheme.describe()), ("weights", f"{_bytes(sizes.total())}: {each}")]


def _count(number: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return str(number)


def _bytes(number: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return f"{number} B"
