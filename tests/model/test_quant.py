"""Packing a model: each part holds its parameters' rows, and unpacking gives back what the parts mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from qnext.kernels.packed import Packed, check, dequantise, quantise
from qnext.model import quant
from qnext.model.packed_layout import parts
from qnext.model.quant import Parts, pack_model
from qnext.model.qwen3_next import Qwen3Next
from qnext.model.scheme import Scheme

from .tiny import tiny_model, token_ids

EXACT = Scheme("float32")


def floats(packed: Parts, name: str) -> Tensor:
    found = packed[name]
    assert isinstance(found, Packed)
    return dequantise(check(found, name))


def test_names_and_shapes() -> None:
    packed = pack_model(tiny_model(), Scheme(rules=(("lm_head", "int8"),)))
    shapes = {
        name: (each.kind, *each.data.shape[:-3], each.rows, each.columns)
        if isinstance(each, Packed)
        else tuple(each.shape)
        for name, each in packed.items()
    }
    assert {name: shape for name, shape in shapes.items() if "layers." not in name} == {
        "embed_tokens": (97, 48),
        "norm": (48,),
        "lm_head": ("int8", 97, 48),
        "mtp.pre_fc_norm_embedding": (48,),
        "mtp.pre_fc_norm_hidden": (48,),
        "mtp.fc": ("int4", 48, 96),
        "mtp.norm": (48,),
    }
    sparse = {
        "mlp.router": ("bfloat16", 9, 48),
        "mlp.experts.gate_up_proj": ("int4", 8, 64, 48),
        "mlp.experts.down_proj": ("int4", 8, 48, 20),
        "mlp.shared_expert.gate_up_proj": ("int4", 64, 48),
        "mlp.shared_expert.down_proj": ("int4", 48, 24),
        "input_layernorm": (48,),
        "post_attention_layernorm": (48,),
    }
    linear = {
        "linear_attn.qkvz_proj": ("int4", 128, 48),
        "linear_attn.ba_proj": ("bfloat16", 8, 48),
        "linear_attn.conv1d": (80, 4),
        "linear_attn.A_log": (4,),
        "linear_attn.dt_bias": (4,),
        "linear_attn.norm": (12,),
        "linear_attn.out_proj": ("int4", 48, 48),
    }
    full = {
        "self_attn.qgkv_proj": ("int4", 192, 48),
        "self_attn.q_norm": (16,),
        "self_attn.k_norm": (16,),
        "self_attn.o_proj": ("int4", 48, 64),
    }
    for layer, mixer in (("layers.0.", linear), ("layers.3.", full), ("mtp.layers.0.", full)):
        found = {name.removeprefix(layer): s for name, s in shapes.items() if name.startswith(layer)}
        assert found == sparse | mixer


def test_rows_stand_where_the_kernels_expect_them() -> None:
    model = tiny_model(attention_bias=True)
    packed, weights = pack_model(model, EXACT), dict(model.named_parameters())
    inner, halves = 20, floats(packed, "layers.1.mlp.experts.gate_up_proj").unflatten(1, (2, 2, 16))
    stacked = weights["layers.1.mlp.experts.gate_up_proj"]
    gate, up = halves[:, :, 0].flatten(1, 2), halves[:, :, 1].flatten(1, 2)
    assert torch.equal(gate[:, :inner], stacked[:, :inner]) and torch.equal(up[:, :inner], stacked[:, inner:])
    assert not gate[:, inner:].any() and not up[:, inner:].any()
    router = floats(packed, "layers.1.mlp.router")
    assert torch.equal(router[:-1], weights["layers.1.mlp.gate.weight"])
    assert torch.equal(router[-1:], weights["layers.1.mlp.shared_expert_gate.weight"])
    names = [f"layers.3.self_attn.{each}_proj" for each in ("q", "gate", "k", "v")]
    qgkv = floats(packed, "layers.3.self_attn.qgkv_proj")
    assert torch.equal(qgkv, torch.cat([weights[f"{name}.weight"] for name in names]))
    assert torch.equal(
        packed["layers.3.self_attn.qgkv_bias"], torch.cat([weights[f"{n}.bias"] for n in names])
    )
    assert torch.equal(packed["layers.3.self_attn.o_bias"], weights["layers.3.self_attn.o_proj.bias"])


@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_word_embeddings": True}, {"attention_bias": True, "mtp_layers": 0}, {"mlp_only_layers": (1,)}],
)
def test_without_rounding_the_model_comes_back(changes: dict[str, Any]) -> None:
    model = tiny_model(**changes)
    again = Qwen3Next.from_packed(model.config, pack_model(model, EXACT))
    weights = dict(model.named_parameters())
    for name, weight in again.named_parameters():
        source = name if name in weights else "embed_tokens.weight"
        assert torch.equal(weight, weights[source]), name
    ids = token_ids(40)
    assert torch.equal(again.logits(again(ids)), model.logits(model(ids)))


@pytest.mark.parametrize("kind", ["int4", "int8", "bfloat16"])
def test_unpacking_gives_what_each_matrix_means(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quant, "CHUNK", 2048)  # several pieces a matrix
    model = tiny_model()
    scheme = Scheme(kind, 32)
    again = Qwen3Next.from_packed(model.config, pack_model(model, scheme))
    found, weights = dict(again.named_parameters()), dict(model.named_parameters())
    for part in parts(model.config):
        for name in part.sources:
            expected = weights[name]
            if part.packed:
                expected = dequantise(quantise(expected, scheme.kind_of(part.name), 32))
            elif part.form == "table":
                expected = expected.bfloat16().float()
            assert torch.equal(found[name], expected), name


def test_a_tied_output_matrix_is_rounded_without_the_embedding() -> None:
    model = tiny_model(tie_word_embeddings=True)
    again = Qwen3Next.from_packed(model.config, pack_model(model, Scheme()))
    assert again.lm_head is not None and not torch.equal(again.lm_head.weight, again.embed_tokens.weight)
    assert torch.equal(again.embed_tokens.weight, model.embed_tokens.weight.bfloat16().float())


def test_a_rule_that_fits_nothing_is_a_slip() -> None:
    with pytest.raises(ValueError, match=r"rule 'layer\.0\.\*' fits no matrix"):
        pack_model(tiny_model(), Scheme(rules=(("layer.0.*", "int8"),)))
