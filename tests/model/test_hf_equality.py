"""The network against `transformers`' own, on random weights: logits in float32 and in bfloat16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen3NextConfig, Qwen3NextForCausalLM

from qnext.model.qwen3_next import Qwen3Next

from .tiny import TINY

LENGTHS = (1, 2, 5, 63, 64, 65, 130, 300)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LINEAR, FULL = "linear_attention", "full_attention"
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "tied": {"tie_word_embeddings": True, "linear_conv_kernel_dim": 3},
    "every second layer sparse": {"decoder_sparse_step": 2, "num_experts": 7},
    "dense layers": {"mlp_only_layers": [1, 3], "linear_conv_kernel_dim": 2},
    "no experts": {"num_experts": 0, "num_attention_heads": 2},
    "biases, one KV head": {"attention_bias": True, "num_key_value_heads": 1},
    "YaRN": {"rope_scaling": YARN, "max_position_embeddings": 256},
    "equal heads, shares as they are": {"linear_num_value_heads": 2, "norm_topk_prob": False},
    "four value heads a key head": {"linear_num_key_heads": 1, "linear_value_head_dim": 5, "num_experts": 5},
    "narrow heads": {"head_dim": 20, "partial_rotary_factor": 0.5, "num_experts_per_tok": 1},
    "wholly rotary": {"partial_rotary_factor": 1.0, "rms_norm_eps": 1e-3, "num_key_value_heads": 4},
    "irregular layers": {"layer_types": [FULL, LINEAR, FULL, FULL, LINEAR], "num_hidden_layers": 5},
}


def theirs(changes: dict[str, Any]) -> Qwen3NextForCausalLM:
    """A random network of `transformers`, norms and biases moved away from their initial values."""
    # transformers' experts in bfloat16 want widths that are multiples of 8
    config = {**TINY, "rope_theta": 10000.0, "moe_intermediate_size": 24, **changes}
    torch.manual_seed(0)
    model = Qwen3NextForCausalLM(Qwen3NextConfig(**config)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name or name.endswith(("bias", "A_log")):
                weight.add_(torch.randn_like(weight) * 0.1)
    return model


def rows() -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randint(0, 97, (length,), generator=rng) for length in LENGTHS]


def ours(model: Qwen3NextForCausalLM, path: Path, dtype: torch.dtype) -> Qwen3Next:
    """The same weights, by way of the disk."""
    model.save_pretrained(path)
    return Qwen3Next.from_pretrained(path, dtype=dtype)


@torch.inference_mode()
@pytest.mark.parametrize("shape", SHAPES)
def test_float32_logits(shape: str, tmp_path: Path) -> None:
    reference = theirs(SHAPES[shape])
    model = ours(reference, tmp_path, torch.float32)
    for ids in rows():
        wanted, found = reference(ids[None]).logits[0], model.logits(model(ids))
        assert found.dtype == torch.float32
        worst = (found - wanted).abs().max() / wanted.abs().max()
        assert worst <= 1e-4, (len(ids), float(worst))


@torch.inference_mode()
@pytest.mark.parametrize(
    "shape", ["plain", "dense layers", "YaRN", "four value heads a key head", "irregular layers"]
)
def test_bfloat16_is_no_further_off_than_transformers(shape: str, tmp_path: Path) -> None:
    half = theirs(SHAPES[shape]).bfloat16()
    model = ours(half, tmp_path, torch.bfloat16)
    reference = theirs(SHAPES[shape])
    reference.load_state_dict({name: weight.float() for name, weight in half.state_dict().items()})
    mine, other = [], []
    for ids in rows():
        wanted = reference(ids[None]).logits[0]
        found = model.logits(model(ids))
        assert found.dtype == torch.bfloat16
        mine.append((found.float() - wanted).square().mean())
        other.append((half(ids[None]).logits[0].float() - wanted).square().mean())
    assert 0 < torch.stack(mine).mean().sqrt() <= 2 * torch.stack(other).mean().sqrt()
