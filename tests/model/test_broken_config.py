"""Checkpoints whose config.json has a field that is unknown or cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from .checkpoints import edit_json
from .corpus import GOOD, assert_refused

# Fields of config.json: (changes, what the message holds)

FIELDS = {
    "unknown field": ({"num_exprets": 3}, ("num_exprets", "num_experts")),
    "unknown switch": ({"use_mla": True}, ("use_mla",)),
    "other model": ({"model_type": "qwen3_5"}, ("model_type", "qwen3_5")),
    "other activation": ({"hidden_act": "gelu"}, ("hidden_act", "gelu")),
    "key-value heads": ({"num_key_value_heads": 3}, ("num_key_value_heads", "3")),
    "linear heads": ({"linear_num_key_heads": 3}, ("linear_num_key_heads", "3")),
    "negative size": ({"hidden_size": -16}, ("hidden_size", "-16")),
    "no layers": ({"num_hidden_layers": 0}, ("num_hidden_layers", "0")),
    "size as text": ({"vocab_size": "40"}, ("vocab_size", "'40'")),
    "size as a fraction": ({"head_dim": 8.5}, ("head_dim", "8.5")),
    "experts per token": ({"num_experts_per_tok": 4}, ("num_experts_per_tok", "4")),
    "too few layer types": (
        {"layer_types": ["full_attention"] * 3},
        ("layer_types", "3", "num_hidden_layers"),
    ),
    "unknown layer type": (
        {"layer_types": ["linear_attention"] * 3 + ["sliding_attention"]},
        ("layer_types[3]", "sliding_attention"),
    ),
    "layer types no list": ({"layer_types": 4}, ("layer_types",)),
    "interval": ({"full_attention_interval": 0}, ("full_attention_interval", "0")),
    "dense layer beyond": ({"mlp_only_layers": [9]}, ("mlp_only_layers", "9")),
    "dense layers no list": ({"mlp_only_layers": 2}, ("mlp_only_layers",)),
    "sparse step": ({"decoder_sparse_step": 0}, ("decoder_sparse_step", "0")),
    "rope type": ({"rope_scaling": {"rope_type": "spiral", "factor": 2.0}}, ("rope", "spiral")),
    "rope without factor": ({"rope_scaling": {"rope_type": "yarn"}}, ("rope", "factor")),
    "nested rope type": ({"rope_parameters": {"rope_type": "spiral"}}, ("rope", "spiral")),
    "rotary share": ({"partial_rotary_factor": 1.5}, ("partial_rotary_factor", "1.5")),
    "bias as a number": ({"attention_bias": 1}, ("attention_bias", "1")),
    "dtype": ({"torch_dtype": "int8"}, ("dtype", "int8")),
    "norm epsilon": ({"rms_norm_eps": 0}, ("rms_norm_eps", "0")),
}


@pytest.mark.parametrize(("changes", "needles"), FIELDS.values(), ids=FIELDS)
def test_refused(tmp_path: Path, changes: dict[str, object], needles: tuple[str, ...]) -> None:
    path = GOOD["single"](tmp_path / "checkpoint")
    edit_json(path / "config.json", lambda config: config.update(changes))
    assert_refused(path, ("config.json", *needles))
