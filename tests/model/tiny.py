"""A network of a few thousand random weights, its norms and gates away from their initial values."""

from __future__ import annotations

from typing import Any

import torch

from qnext.model.config import ModelConfig
from qnext.model.qwen3_next import Qwen3Next

VOCABULARY = 97
TINY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 40,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 12,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 20,
    "shared_expert_intermediate_size": 24,
    "max_position_embeddings": 512,
    "initializer_range": 0.05,
}


def tiny_model(seed: int = 0, **changes: Any) -> Qwen3Next:
    """The network in float32, in evaluation mode, without gradients. `changes` are fields of the config."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen3Next(ModelConfig(**{**TINY, **changes}))
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "norm" in name or name.endswith(("bias", "A_log")):
                    weight.add_(torch.randn_like(weight) * 0.1)
    return model.eval().requires_grad_(False)


def token_ids(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed))
