"""Checkpoints whose files are whole, but not those of the network that config.json describes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qnext.model.qwen3_next import Qwen3Next

from .checkpoints import INDEX, SHARDS, SINGLE, edit_json, edit_tensors
from .corpus import GOOD, Corpus, Damage, assert_refused

A_LOG = "model.layers.0.linear_attn.A_log"
EMBEDDING = "model.embed_tokens.weight"
NORM = "model.norm.weight"
EXPERT = "model.layers.1.mlp.experts.2.down_proj.weight"
QUERY = "model.layers.3.self_attn.q_proj.weight"
SCALE = QUERY + "_scale_inv"

CORPUS = Corpus()


@pytest.mark.parametrize("good", GOOD)
def test_unbroken(tmp_path: Path, good: str) -> None:
    Qwen3Next.from_pretrained(GOOD[good](tmp_path))


def edit_config(path: Path, **changes: object) -> None:
    edit_json(path / "config.json", lambda config: config.update(changes))


# The tensors against the network


@CORPUS.broken("single", SINGLE, A_LOG, "missing tensor")
def tensor_missing(path: Path) -> None:
    edit_tensors(path / SINGLE, lambda tensors: tensors.pop(A_LOG))


@CORPUS.broken("sharded", SHARDS[0], "model.layers.0.linear_attn.D", "unexpected tensor")
def tensor_too_many(path: Path) -> None:
    edit_tensors(
        path / SHARDS[0], lambda tensors: tensors.update({"model.layers.0.linear_attn.D": torch.ones(4)})
    )
    edit_json(
        path / INDEX, lambda index: index["weight_map"].update({"model.layers.0.linear_attn.D": SHARDS[0]})
    )


@CORPUS.broken("single", SINGLE, NORM, "model.final_norm.weight")
def tensor_misnamed(path: Path) -> None:
    edit_tensors(
        path / SINGLE, lambda tensors: tensors.update({"model.final_norm.weight": tensors.pop(NORM)})
    )


@CORPUS.broken("single", SINGLE, EMBEDDING, "[39, 16]", "[40, 16]", "vocab_size")
def vocabulary_too_small(path: Path) -> None:
    edit_tensors(path / SINGLE, lambda t: t.update({EMBEDDING: t[EMBEDDING][:39].clone()}))


@CORPUS.broken("single", SINGLE, QUERY, "[32, 16]", "[64, 16]", "num_attention_heads")
def other_number_of_heads(path: Path) -> None:
    edit_config(path, num_attention_heads=4)


@CORPUS.broken("single", SINGLE, "in_proj_qkvz.weight", "linear_num_key_heads")
def other_number_of_key_heads(path: Path) -> None:
    edit_config(path, linear_num_key_heads=1)


@CORPUS.broken("single", SINGLE, "conv1d.weight", "linear_conv_kernel_dim")
def other_convolution(path: Path) -> None:
    edit_config(path, linear_conv_kernel_dim=3)


@CORPUS.broken("single", SINGLE, EMBEDDING, "hidden_size")
def other_hidden_size(path: Path) -> None:
    edit_config(path, hidden_size=32)


@CORPUS.broken("single", SINGLE, EXPERT, "[5, 16]", "[16, 5]")
def expert_transposed(path: Path) -> None:
    edit_tensors(path / SINGLE, lambda tensors: tensors.update({EXPERT: tensors[EXPERT].T.contiguous()}))


@CORPUS.broken("single", SINGLE, EXPERT, "num_experts")
def expert_missing(path: Path) -> None:
    edit_tensors(path / SINGLE, lambda tensors: tensors.pop(EXPERT))


@CORPUS.broken("single", SINGLE, "experts.3.", "num_experts = 4")
def more_experts_in_the_config(path: Path) -> None:
    edit_config(path, num_experts=4)


@CORPUS.broken("single", SINGLE, "experts.2.", "num_experts = 2")
def fewer_experts_in_the_config(path: Path) -> None:
    edit_config(path, num_experts=2)


@CORPUS.broken("single", SINGLE, "model.layers.4.", "num_hidden_layers = 5")
def more_layers_in_the_config(path: Path) -> None:
    edit_config(path, num_hidden_layers=5)


@CORPUS.broken("single", SINGLE, "model.layers.3.", "num_hidden_layers = 3")
def fewer_layers_in_the_config(path: Path) -> None:
    edit_config(path, num_hidden_layers=3)


@CORPUS.broken("single", SINGLE, "model.layers.2.linear_attn.", "layer_types[2] = 'full_attention'")
def attention_where_the_tensors_are_linear(path: Path) -> None:
    kinds = ["linear_attention"] * 2 + ["full_attention"] * 2
    edit_config(path, layer_types=kinds)


@CORPUS.broken("single", SINGLE, "model.layers.3.self_attn.", "layer_types[3] = 'linear_attention'")
def linear_where_the_tensors_are_attention(path: Path) -> None:
    edit_config(path, layer_types=["linear_attention"] * 4)


@CORPUS.broken("single", SINGLE, "model.layers.1.mlp.", "mlp_only_layers = (1,)", "dense")
def dense_where_the_tensors_are_experts(path: Path) -> None:
    edit_config(path, mlp_only_layers=[1])


@CORPUS.broken("single", SINGLE, "self_attn.k_proj.bias", "attention_bias = true")
def bias_missing(path: Path) -> None:
    edit_config(path, attention_bias=True)
    edit_tensors(path / SINGLE, lambda t: t.update({QUERY.replace("weight", "bias"): torch.zeros(32)}))


@CORPUS.broken("single", SINGLE, "self_attn.q_proj.bias", "attention_bias = false")
def bias_unexpected(path: Path) -> None:
    edit_tensors(path / SINGLE, lambda t: t.update({QUERY.replace("weight", "bias"): torch.zeros(32)}))


@CORPUS.broken("single", SINGLE, "mtp.fc.weight", "all or none")
def mtp_in_part(path: Path) -> None:
    edit_tensors(path / SINGLE, lambda tensors: tensors.pop("mtp.fc.weight"))


@CORPUS.broken("single", SINGLE, "mtp.layers.1.input_layernorm.weight", "mtp_layers = 1")
def a_second_mtp_layer(path: Path) -> None:
    edit_tensors(path / SINGLE, lambda t: t.update({"mtp.layers.1.input_layernorm.weight": torch.zeros(16)}))


@CORPUS.broken("tied", SINGLE, "lm_head.weight", EMBEDDING, "tie_word_embeddings")
def tied_with_another_head(path: Path) -> None:
    edit_tensors(path / SINGLE, lambda tensors: tensors.update({"lm_head.weight": tensors[EMBEDDING] + 1}))


@CORPUS.broken("single", SINGLE, "lm_head.weight", "tie_word_embeddings = false")
def untied_without_a_head(path: Path) -> None:
    edit_tensors(path / SINGLE, lambda tensors: tensors.pop("lm_head.weight"))


# Block float8


def edit_quantisation(path: Path, **changes: object) -> None:
    edit_json(path / "config.json", lambda config: config["quantization_config"].update(changes))


@CORPUS.broken("fp8", SINGLE, QUERY, SCALE, "missing")
def scale_missing(path: Path) -> None:
    edit_tensors(path / SINGLE, lambda tensors: tensors.pop(SCALE))


@CORPUS.broken("fp8", SINGLE, SCALE, "[3, 2]", "[4, 2]")
def scale_of_another_shape(path: Path) -> None:
    edit_tensors(path / SINGLE, lambda tensors: tensors.update({SCALE: tensors[SCALE][:3].clone()}))


@CORPUS.broken("fp8", SINGLE, SCALE, "finite")
def scale_not_a_number(path: Path) -> None:
    edit_tensors(path / SINGLE, lambda tensors: tensors[SCALE][1].fill_(float("nan")))


@CORPUS.broken("fp8", SINGLE, SCALE, "finite")
def scale_negative(path: Path) -> None:
    edit_tensors(path / SINGLE, lambda tensors: tensors[SCALE][0].neg_())


@CORPUS.broken("fp8", SINGLE, SCALE, "float16")
def scale_in_half_precision(path: Path) -> None:
    edit_tensors(path / SINGLE, lambda tensors: tensors.update({SCALE: tensors[SCALE].half()}))


@CORPUS.broken("fp8", SINGLE, EMBEDDING + "_scale_inv", "bfloat16")
def scale_for_a_plain_weight(path: Path) -> None:
    edit_tensors(path / SINGLE, lambda t: t.update({EMBEDDING + "_scale_inv": torch.ones(5, 2)}))


@CORPUS.broken("fp8", SINGLE, "phantom.weight_scale_inv")
def scale_for_no_weight(path: Path) -> None:
    edit_tensors(path / SINGLE, lambda t: t.update({"phantom.weight_scale_inv": torch.ones(1, 1)}))


@CORPUS.broken("fp8", SINGLE, NORM, "only matrices")
def float8_norm(path: Path) -> None:
    edit_tensors(path / SINGLE, lambda t: t.update({NORM: t[NORM].to(torch.float8_e4m3fn)}))


@CORPUS.broken("fp8", SINGLE, QUERY, "F8_E5M2")
def other_float8(path: Path) -> None:
    edit_tensors(path / SINGLE, lambda t: t.update({QUERY: t[QUERY].float().to(torch.float8_e5m2)}))


@CORPUS.broken("fp8", SINGLE, "float8", "config.json", "quantization_config")
def float8_unstated(path: Path) -> None:
    edit_json(path / "config.json", lambda config: config.pop("quantization_config"))


@CORPUS.broken("single", "config.json", "quantization_config", "no tensor is float8")
def float8_stated_only(path: Path) -> None:
    stated = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    edit_config(path, quantization_config=stated)


@CORPUS.broken("fp8", "config.json", "quant_method", "'gptq'")
def other_quantisation(path: Path) -> None:
    edit_quantisation(path, quant_method="gptq")
    edit_tensors(
        path / SINGLE, lambda tensors: tensors.update({QUERY: torch.zeros(32, 2, dtype=torch.int32)})
    )


@CORPUS.broken("fp8", "config.json", "fmt", "'e5m2'")
def other_float8_stated(path: Path) -> None:
    edit_quantisation(path, fmt="e5m2")


@CORPUS.broken("fp8", "config.json", "weight_block_size", "None")
def one_scale_for_a_tensor(path: Path) -> None:
    edit_quantisation(path, weight_block_size=None)


@CORPUS.broken("fp8", "config.json", "weight_block_size", "[0, 8]")
def block_of_no_rows(path: Path) -> None:
    edit_quantisation(path, weight_block_size=[0, 8])


@pytest.mark.parametrize(("good", "damage", "needles"), CORPUS.cases)
def test_refused(tmp_path: Path, good: str, damage: Damage, needles: tuple[str, ...]) -> None:
    path = GOOD[good](tmp_path / "checkpoint")
    damage(path)
    assert_refused(path, needles)
