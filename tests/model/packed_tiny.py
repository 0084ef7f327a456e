"""Tiny networks on packed weights, and the float networks that they stand for."""

from __future__ import annotations

from typing import Any

import torch

from qnext.model.packed_network import Activations, PackedQwen3Next
from qnext.model.quant import pack_model
from qnext.model.qwen3_next import Qwen3Next
from qnext.model.scheme import Scheme

from .tiny import tiny_model

SHAPE = {"linear_key_head_dim": 16, "linear_value_head_dim": 32}  # whole vectors


def packed_tiny(kind: str, activations: Activations, **changes: Any) -> PackedQwen3Next:
    """A network with caches in float32."""
    return packed_pair(kind, activations, **changes)[0]


def packed_pair(kind: str, activations: Activations, **changes: Any) -> tuple[PackedQwen3Next, Qwen3Next]:
    """A network with caches in float32, and its twin on the numbers that its bytes mean."""
    model = tiny_model(**{**SHAPE, **changes})
    parts = pack_model(model, Scheme(kind, 32))
    packed = PackedQwen3Next(model.config, parts, activations=activations, cache_dtype=torch.float32)
    return packed, Qwen3Next.from_packed(model.config, parts)
