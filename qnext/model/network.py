"""Loading a checkpoint as the network that runs it best: on packed weights on a CPU, `Qwen3Next` elsewhere.

Called by `engine`, `actor` and `cli`. Invariant: whichever it is, it is called alike, and is for serving
only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch

from qnext.kernels.select import packs

from .checkpoint import Checkpoint
from .config import ModelConfig
from .conversion import pack_checkpoint
from .packed_file import is_packed, open_packed
from .packed_network import Activations, PackedQwen3Next, supported
from .quant import pack_model
from .qwen3_next import Qwen3Next
from .scheme import Scheme
from .weights import Progress

Network = Qwen3Next | PackedQwen3Next
KVCache = Literal["auto", "int8"]
KINDS = {torch.bfloat16: "bfloat16", torch.float32: "float32"}


def load_network(
    path: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    quantize: str | None = None,
    activations: Activations = "int8",
    kv_cache: KVCache = "auto",
    progress: Progress | None = None,
) -> Network:
    """A checkpoint directory, published or packed. `dtype` None keeps the checkpoint's own; `quantize` rounds
    a published one while it is read ("int4", "int8"; see `Scheme`). Keys and values are kept in `dtype`, or
    with `kv_cache` "int8" in 8 bits.

    Raises ValueError naming the file, the tensor or the field that is wrong.
    """
    packing = packs(torch.device(device).type)
    if is_packed(path):
        if quantize:
            raise ValueError(f"{path} is packed already: serve it without --quantize")
        opened = open_packed(path)
        dtype = dtype or (torch.float32 if opened.scheme.kind == "float32" else torch.bfloat16)
        cached = torch.int8 if kv_cache == "int8" else dtype
        if packing and supported(opened.config):
            return PackedQwen3Next(opened.config, opened.parts, activations=activations, cache_dtype=cached)
        _refuse(kv_cache)
        return Qwen3Next.from_packed(opened.config, opened.parts, dtype=dtype, device=device)
    checkpoint = Checkpoint(path)
    own = dtype or checkpoint.dtype
    if packing and (quantize or own in KINDS):
        config = ModelConfig.from_dict(checkpoint.config_dict, mtp_layers=checkpoint.mtp_layers)
        if supported(config):
            config, parts = pack_checkpoint(path, Scheme(quantize or KINDS[own]), progress=progress)
            cached = torch.float32 if own == torch.float32 else torch.bfloat16
            cached = torch.int8 if kv_cache == "int8" else cached
            return PackedQwen3Next(config, parts, activations=activations, cache_dtype=cached)
    if quantize:
        raise ValueError("weights are packed for CPUs and shapes of whole blocks of 16: leave --quantize out")
    _refuse(kv_cache)
    return Qwen3Next.from_pretrained(path, dtype=dtype, device=device, progress=progress)


def _refuse(kv_cache: KVCache) -> None:
    if kv_cache != "auto":
        raise ValueError(
            "keys and values in 8 bits are for CPUs, weights in bfloat16, float32 or packed, and heads of "
            "whole blocks of 16: leave --kv-cache out"
        )


@torch.no_grad()
def network_of(model: Qwen3Next, *, dtype: torch.dtype, activations: Activations = "int8") -> Network:
    """The network that serves a model in memory, its matrices rounded to `dtype`, with memory of its own: the
    model may go on learning. See `load_network`."""
    if packs(model.device.type) and dtype in KINDS and supported(model.config):
        parts = pack_model(model, Scheme(KINDS[dtype]))
        return PackedQwen3Next(model.config, parts, activations=activations, cache_dtype=dtype)
    copy = Qwen3Next(model.config, device="meta", dtype=dtype).to_empty(device=model.device)
    for name, weight in copy.named_parameters():
        weight.copy_(model.get_parameter(name))
    return copy.eval().requires_grad_(False)
