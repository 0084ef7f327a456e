"""The inventory: are the tensors of a checkpoint exactly those of the network?

Asked by `Checkpoint.check`, before any data is read. Invariant: after `check` every parameter has its source,
every stored tensor its use, and every quantised tensor its scales. Errors name the file, the tensor and what
in config.json speaks against it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from . import fp8
from .config import ModelConfig
from .layout import Entry
from .shard import TensorInfo

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def check(
    config: ModelConfig,
    entries: Iterable[Entry],
    tensors: Mapping[str, TensorInfo],
    listing: Path,
    fp8_block: tuple[int, int] | None,
) -> None:
    """Raises ValueError unless `tensors` are the `entries`, each in its shape, and no other.

    A copy of the embedding as `lm_head.weight` may stand in a tied checkpoint; `weights` compares it.
    `listing` is the file to name when a tensor is missing.
    """
    expected = {entry.name: entry for entry in entries}
    scales = {name + fp8.SCALE for name in tensors if name in expected}
    copies = {HEAD} if config.tie_word_embeddings else set()
    used = expected.keys() | scales | copies
    surplus = [name for name in tensors if name not in used]
    missing = [name for name in expected if name not in tensors]
    if surplus or missing:
        # both in one message: a misnamed tensor is surplus under one name and missing under another
        faults = [
            f"{kind} tensor {names[0]!r}{f' (and {len(names) - 1} more)' if names[1:] else ''}: "
            + _why(names[0], config, tensors)
            for kind, names in (("unexpected", surplus), ("missing", missing))
            if names
        ]
        file = tensors[surplus[0]].file if surplus else listing
        raise ValueError(f"{file}: " + "; ".join(faults))
    for name, entry in expected.items():
        info = tensors[name]
        if info.shape != entry.shape:
            raise ValueError(
                f"{info.file}: tensor {name!r} has shape {list(info.shape)}, expected {list(entry.shape)} = "
                f"[{', '.join(entry.sizes)}] of config.json"
            )
        scale = tensors.get(name + fp8.SCALE)
        if info.dtype == fp8.DTYPE:
            assert fp8_block is not None
            fp8.check_scale(name, info, scale, fp8_block)
        elif scale is not None:
            raise ValueError(
                f"{scale.file}: {name + fp8.SCALE!r} has scales for {name!r}, which is {info.dtype}"
            )


def _why(name: str, config: ModelConfig, tensors: Mapping[str, TensorInfo]) -> str:
    """The statement that makes tensor `name` missing or unexpected."""
    if name.startswith("mtp."):
        return f"the network has mtp_layers = {config.mtp_layers}, and mtp.* tensors come all or none"
    if name == HEAD:
        return f"config.json says tie_word_embeddings = {str(config.tie_word_embeddings).lower()}"
    match = re.match(r"model\.layers\.(\d+)\.(.*)", name)
    if match is None:
        return "Qwen3-Next has no such tensor" if name in tensors else "every Qwen3-Next has it"
    layer, rest = int(match[1]), match[2]
    stored = any(other.startswith(f"model.layers.{layer}.") for other in tensors)
    if layer >= config.num_hidden_layers or not stored:
        return f"config.json says num_hidden_layers = {config.num_hidden_layers}"
    if rest.endswith(".bias"):
        return f"config.json says attention_bias = {str(config.attention_bias).lower()}"
    if rest.startswith(("self_attn.", "linear_attn.")):
        return f"config.json says layer_types[{layer}] = {config.layer_types[layer]!r}"
    if rest.startswith("mlp.experts.") and config.is_sparse(layer):
        return f"config.json says num_experts = {config.num_experts}"
    if rest.startswith("mlp."):
        kind = "a mixture of experts" if config.is_sparse(layer) else "dense"
        fields = ("num_experts", "decoder_sparse_step", "mlp_only_layers")
        stated = ", ".join(f"{field} = {getattr(config, field)}" for field in fields)
        return f"layer {layer} is {kind}, as config.json says {stated}"
    return f"layer {layer} has nothing else" if name in tensors else "every layer has it"
