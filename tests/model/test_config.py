"""`ModelConfig`: both spellings, every refusal, and the way back to `config.json`."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import Qwen3NextConfig

from qnext.model.config import ModelConfig, layer_pattern
from qnext.model.rope_scaling import Yarn

from .published import PUBLISHED

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 262144}


def test_the_published_config() -> None:
    config = ModelConfig.from_dict(PUBLISHED)
    for name in ("hidden_size", "head_dim", "num_experts", "linear_num_value_heads", "intermediate_size"):
        assert getattr(config, name) == PUBLISHED[name]
    assert [i for i, kind in enumerate(config.layer_types) if kind == "full_attention"] == list(
        range(3, 48, 4)
    )
    assert config.rope_theta == 1e7 and config.rope_scaling is None
    assert config.rotary_dim == 64 and config.conv_dim == 8192
    assert all(config.is_sparse(layer) for layer in range(48))
    assert config.dtype == "bfloat16" and config.eos_token_id == 151645


def nested(table: dict[str, Any], scaling: dict[str, Any] | None = None) -> dict[str, Any]:
    """The newer spelling of a flat config.json."""
    moved = {"rope_theta", "rope_scaling", "partial_rotary_factor", "full_attention_interval", "torch_dtype"}
    new = {name: value for name, value in table.items() if name not in moved}
    new["rope_parameters"] = {
        "rope_theta": table["rope_theta"],
        "partial_rotary_factor": table["partial_rotary_factor"],
        **(scaling or {"rope_type": "default"}),
    }
    new["layer_types"] = (["linear_attention"] * 3 + ["full_attention"]) * 12
    new["dtype"] = table["torch_dtype"]
    return new


def test_both_spellings_say_the_same() -> None:
    assert ModelConfig.from_dict(nested(PUBLISHED)) == ModelConfig.from_dict(PUBLISHED)


def test_both_spellings_of_yarn_say_the_same() -> None:
    old = ModelConfig.from_dict({**PUBLISHED, "rope_scaling": YARN})
    older = ModelConfig.from_dict({**PUBLISHED, "rope_scaling": {"type": "yarn", "factor": 4.0}})
    new = ModelConfig.from_dict(nested(PUBLISHED, YARN))
    assert old == older == new
    assert old.rope_scaling == Yarn(4.0, 262144)
    assert old != ModelConfig.from_dict(PUBLISHED)


def test_theta_may_stand_with_the_scaling() -> None:
    config = ModelConfig.from_dict({**PUBLISHED, "rope_scaling": {**YARN, "rope_theta": 7.0}})
    assert config.rope_theta == 7.0


def test_fields_left_out_are_as_in_transformers() -> None:
    config, theirs = ModelConfig.from_dict({"model_type": "qwen3_next"}), Qwen3NextConfig()
    for name, value in theirs.to_dict().items():
        if hasattr(config, name) and name != "dtype":
            ours = getattr(config, name)
            assert (list(ours) if isinstance(ours, tuple) else ours) == value, name
    assert config.rope_theta == theirs.rope_parameters["rope_theta"]
    assert config.partial_rotary_factor == theirs.rope_parameters["partial_rotary_factor"]


CHANGES: list[dict[str, Any]] = [
    {},
    {"rope_scaling": {**YARN, "beta_fast": 16, "truncate": False, "attention_factor": 1.1}},
    {"layer_types": ["full_attention"] * 2 + ["linear_attention"] * 46},
    {"mlp_only_layers": [0, 5], "decoder_sparse_step": 2, "tie_word_embeddings": True},
    {"eos_token_id": [151645, 151643], "pad_token_id": 3, "torch_dtype": "torch.float16"},
    {"num_experts": 0, "attention_bias": True, "norm_topk_prob": False, "rms_norm_eps": 1e-5},
    {"mtp_normed_input": False},
]


@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: ",".join(changes))
def test_to_dict_and_back(changes: dict[str, Any]) -> None:
    config = ModelConfig.from_dict({**PUBLISHED, **changes})
    assert ModelConfig.from_dict(config.to_dict()) == config
    if changes:
        assert config != ModelConfig.from_dict(PUBLISHED)


@pytest.mark.parametrize("changes", CHANGES, ids=lambda changes: ",".join(changes))
def test_transformers_reads_what_is_written(changes: dict[str, Any]) -> None:
    config = ModelConfig.from_dict({**PUBLISHED, **changes})
    theirs = Qwen3NextConfig.from_dict(config.to_dict())
    assert ModelConfig.from_dict(theirs.to_dict()) == config


def test_layer_pattern() -> None:
    assert layer_pattern(5, 2) == ("linear_attention", "full_attention") * 2 + ("linear_attention",)
    assert layer_pattern(2, 1) == ("full_attention",) * 2
    config = ModelConfig.from_dict({"num_hidden_layers": 6, "full_attention_interval": 3})
    assert config.layer_types == layer_pattern(6, 3)


def test_lists_are_taken_for_tuples() -> None:
    config = ModelConfig(num_hidden_layers=2, layer_types=["full_attention"] * 2, mlp_only_layers=[1])  # type: ignore[arg-type]
    assert config.layer_types == ("full_attention",) * 2 and config.mlp_only_layers == (1,)
    hash(config)


def test_which_layers_are_sparse() -> None:
    config = ModelConfig.from_dict({**PUBLISHED, "decoder_sparse_step": 3, "mlp_only_layers": [5]})
    assert [layer for layer in range(12) if config.is_sparse(layer)] == [2, 8, 11]
    dense = ModelConfig.from_dict({**PUBLISHED, "num_experts": 0})
    assert not any(dense.is_sparse(layer) for layer in range(48))


ILLEGAL: list[tuple[dict[str, Any], str]] = [
    ({"vocab_size": 0}, "vocab_size"),
    ({"hidden_size": -8}, "hidden_size"),
    ({"hidden_size": True}, "hidden_size"),
    ({"hidden_size": 64.0}, "hidden_size"),
    ({"hidden_size": "64"}, "hidden_size"),
    ({"num_hidden_layers": 0}, "num_hidden_layers"),
    ({"num_hidden_layers": "4"}, "num_hidden_layers"),
    ({"full_attention_interval": 0}, "full_attention_interval"),
    ({"num_attention_heads": 3}, "num_attention_heads"),
    ({"num_key_value_heads": 0}, "num_key_value_heads"),
    ({"linear_num_value_heads": 24}, "linear_num_value_heads"),
    ({"num_experts_per_tok": 600}, "num_experts_per_tok"),
    ({"num_experts": -1}, "num_experts"),
    ({"decoder_sparse_step": 0}, "decoder_sparse_step"),
    ({"partial_rotary_factor": 0}, "partial_rotary_factor"),
    ({"partial_rotary_factor": 1.01}, "partial_rotary_factor"),
    ({"head_dim": 5, "partial_rotary_factor": 1.0}, "head_dim"),
    ({"rope_theta": 0}, "rope_theta"),
    ({"rope_theta": 1}, "rope_theta"),
    ({"rope_theta": "1e6"}, "rope_theta"),
    ({"rope_theta": float("inf")}, "rope_theta"),
    ({"rms_norm_eps": 0}, "rms_norm_eps"),
    ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ({"initializer_range": -0.1}, "initializer_range"),
    ({"router_aux_loss_coef": -1}, "router_aux_loss_coef"),
    ({"norm_topk_prob": "yes"}, "norm_topk_prob"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings"),
    ({"torch_dtype": "int8"}, "dtype"),
    ({"dtype": 16}, "dtype"),
    ({"layer_types": ["full_attention"]}, "layer_types"),
    ({"layer_types": ["full_attention"] * 47 + ["sliding"]}, r"layer_types\[47\]"),
    ({"layer_types": 4}, "layer_types"),
    ({"mlp_only_layers": [48]}, "mlp_only_layers"),
    ({"mlp_only_layers": [True]}, "mlp_only_layers"),
    ({"mlp_only_layers": 3}, "mlp_only_layers"),
    ({"eos_token_id": "<eos>"}, "eos_token_id"),
    ({"eos_token_id": [1, "2"]}, "eos_token_id"),
    ({"bos_token_id": -1}, "bos_token_id"),
    ({"pad_token_id": [1]}, "pad_token_id"),
    ({"model_type": "qwen3_5"}, "model_type"),
    ({"hidden_act": "gelu"}, "hidden_act"),
    ({"use_sliding_window": True}, "use_sliding_window"),
    ({"num_exprets": 5}, "num_exprets.*is num_experts meant"),
    ({"rope_scaling": "yarn"}, "rope_scaling"),
    ({"rope_parameters": [1]}, "rope_parameters"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 2}}, "rope_scaling.rope_type"),
    ({"rope_scaling": {"rope_type": "yarn"}}, "rope_scaling.factor"),
    ({"rope_scaling": {**YARN, "factor": 0.5}}, "rope_scaling.factor"),
    ({"rope_scaling": {**YARN, "factor": "4"}}, "rope_scaling.factor"),
    ({"rope_scaling": {**YARN, "factor": float("inf")}}, "rope_scaling.factor"),
    ({"rope_scaling": {**YARN, "beta_slow": 0}}, "rope_scaling.beta_slow"),
    ({"rope_scaling": {**YARN, "attention_factor": "x"}}, "rope_scaling.attention_factor"),
    ({"rope_scaling": {**YARN, "mscale": -1}}, "rope_scaling.mscale"),
    ({"rope_scaling": {**YARN, "truncate": "no"}}, "rope_scaling.truncate"),
    ({"rope_scaling": {**YARN, "fator": 2}}, "rope_scaling.fator"),
]


@pytest.mark.parametrize("changes,named", ILLEGAL, ids=str)
def test_illegal_configs_are_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=rf"^config\.json: .*{named}"):
        ModelConfig.from_dict({**PUBLISHED, **changes})


def test_more_than_one_mtp_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="mtp_layers"):
        ModelConfig.from_dict(PUBLISHED, mtp_layers=2)


@pytest.mark.parametrize(
    "changes", [{"some_switch": False}, {"some_field": None}, {"use_cache": False}], ids=str
)
def test_fields_that_change_nothing_are_let_pass(changes: dict[str, Any]) -> None:
    assert ModelConfig.from_dict({**PUBLISHED, **changes}) == ModelConfig.from_dict(PUBLISHED)
