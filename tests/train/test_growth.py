"""Growth: a larger network that says what the smaller one said, and can say other things."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qnext.model.config import ModelConfig
from qnext.model.qwen3_next import Qwen3Next
from qnext.train.growth import Growth
from tests.model.tiny import TINY, tiny_model, token_ids

IDS = token_ids(40)


def said(model: Qwen3Next) -> list[torch.Tensor]:
    """Everything that a network says of a text."""
    hidden = model(IDS)
    drafted = model.mtp_hidden(hidden[:-1], IDS[1:])
    return [hidden, model.logits(hidden), drafted]


@pytest.mark.parametrize(
    ("growth", "changes"),
    [
        (Growth((2,)), {}),
        (Growth((0, 2, 6), 24), {}),
        (Growth(key_value_heads=4), {}),
        (Growth((4,), 40, 4), {"num_key_value_heads": 1, "mlp_only_layers": (1,)}),
        (Growth((1,), 40), {"decoder_sparse_step": 2}),
        (Growth((4,), 8, 2), {"num_key_value_heads": 1, "attention_bias": True, "tie_word_embeddings": True}),
        (Growth((0,)), {"num_experts": 0, "intermediate_size": 512}),
    ],
)
def test_it_says_what_it_said(growth: Growth, changes: dict[str, Any]) -> None:
    model = tiny_model(**changes)
    grown = growth.apply(model).eval()
    for one, other in zip(said(model), said(grown), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    added = len(growth.attention_layers)
    assert grown.config.num_hidden_layers == model.config.num_hidden_layers + added
    assert all(grown.config.layer_types[place] == "full_attention" for place in growth.attention_layers)
    assert not any(grown.config.is_sparse(place) for place in growth.attention_layers)
    assert growth.config(model.config) == grown.config


def test_all_that_is_new_learns() -> None:
    grown = Growth((2,), 24, 4).apply(tiny_model()).train().requires_grad_(True)
    before = {name: weight.detach().clone() for name, weight in grown.named_parameters()}
    adam = torch.optim.Adam(grown.parameters(), 1e-3)
    for _ in range(3):  # outputs first, then what feeds them
        logits = grown.logits(grown(IDS[:-1]))
        torch.nn.functional.cross_entropy(logits, IDS[1:]).backward()
        adam.step()
        adam.zero_grad()
    still = [name for name, weight in grown.named_parameters() if torch.equal(weight, before[name])]
    assert [name for name in still if not name.startswith("mtp.")] == []
    keys = grown.layers[-1].self_attn.k_proj.weight.detach().view(4, -1)
    assert not torch.equal(keys[0], keys[1])  # one head before, two now


@pytest.mark.parametrize(
    ("growth", "message"),
    [
        (Growth((5,)), "attention_layers: 5 is no place among the grown network's 5 layers"),
        (Growth((-1,)), "attention_layers: -1 is no place"),
        (Growth(key_value_heads=3), "key_value_heads is 3: give a multiple of the 2 there are"),
        (Growth(key_value_heads=8), "of which the 4 query heads are a multiple"),
        (Growth((0,), 0), "intermediate_size is 0"),
    ],
)
def test_what_cannot_be_is_named(growth: Growth, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        growth.config(ModelConfig(**TINY))


def test_dense_layers_keep_their_width() -> None:
    config = ModelConfig(**{**TINY, "mlp_only_layers": (1,)})
    with pytest.raises(ValueError, match="intermediate_size must stay 40: layer 1 has it"):
        Growth((0,), 64).config(config)
    assert Growth((0,), 40).config(config).mlp_only_layers == (0, 2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give attention_layers or key_value_heads"),
        ({"attention_layers": (1, 1)}, "name each place once"),
    ],
)
def test_an_empty_or_double_table_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Growth(**fields)


def test_a_grown_checkpoint_is_read_like_any(tmp_path: Path) -> None:
    grown = Growth((2,), 24, 4).apply(tiny_model())
    grown.config = replace(grown.config, dtype="float32")
    grown.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["mlp_only_layers"] == [2]
    again = Qwen3Next.from_pretrained(tmp_path)
    for one, other in zip(said(grown.eval()), said(again), strict=True):
        assert torch.equal(one, other)
