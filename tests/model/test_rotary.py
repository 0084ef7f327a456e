"""Rotary tables, plain and stretched by YaRN, against `transformers` and against the formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Qwen3NextConfig
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRotaryEmbedding

from qnext.model.config import ModelConfig
from qnext.model.rotary import frequencies, rotary_table

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096}
SHAPES: list[dict[str, Any]] = [
    {},
    {"rope_theta": 1e7},
    {"head_dim": 20, "partial_rotary_factor": 0.5},
    {"head_dim": 24, "partial_rotary_factor": 0.4},
    {"head_dim": 16, "partial_rotary_factor": 1.0},
]
STRETCHES: list[dict[str, Any]] = [
    {},
    {"factor": 1.0},
    {"factor": 2.5, "original_max_position_embeddings": 64},
    {"beta_fast": 16.0, "beta_slow": 2.0},
    {"truncate": False},
    {"attention_factor": 0.7},
    {"mscale": 0.9, "mscale_all_dim": 0.4},
]


def both(changes: dict[str, Any]) -> tuple[ModelConfig, Qwen3NextRotaryEmbedding]:
    table = {"rope_theta": 10000.0, "partial_rotary_factor": 0.25, "head_dim": 64, **changes}
    return ModelConfig.from_dict(table), Qwen3NextRotaryEmbedding(Qwen3NextConfig.from_dict(table))


def check(changes: dict[str, Any]) -> None:
    config, theirs = both(changes)
    torch.testing.assert_close(frequencies(config), theirs.inv_freq, atol=0, rtol=1e-6)
    positions = torch.tensor([0, 1, 2, 63, 500])  # at far ones the last bit of a frequency shows
    cos, sin = rotary_table(config, positions)
    their_cos, their_sin = theirs(torch.zeros(1), positions[None])
    assert theirs.attention_scaling == pytest.approx(
        config.rope_scaling.scale if config.rope_scaling else 1.0
    )
    half = cos.shape[1]
    assert 2 * half == config.rotary_dim == their_cos.shape[-1]
    torch.testing.assert_close(cos, their_cos[0, :, :half], atol=1e-4, rtol=0)
    torch.testing.assert_close(sin, their_sin[0, :, :half], atol=1e-4, rtol=0)


@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_plain_tables_equal_transformers(changes: dict[str, Any]) -> None:
    check(changes)


# transformers itself fails on YaRN with an odd number of rotary dimensions
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape.get("head_dim") != 24], ids=str)
@pytest.mark.parametrize("stretch", STRETCHES, ids=str)
def test_yarn_tables_equal_transformers(stretch: dict[str, Any], shape: dict[str, Any]) -> None:
    check({**shape, "max_position_embeddings": 16384, "rope_scaling": {**YARN, **stretch}})


def test_frequencies_by_their_formula() -> None:
    config, _ = both({})
    assert frequencies(config).tolist() == pytest.approx([10000.0 ** (-2 * i / 16) for i in range(8)])


def test_yarn_is_static() -> None:
    """The longest position in the row changes nothing for the others."""
    config, _ = both({"rope_scaling": YARN})
    short, _ = rotary_table(config, torch.arange(10))
    long, _ = rotary_table(config, torch.arange(9000))
    assert short.equal(long[:10])
