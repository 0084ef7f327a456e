"""Costs: small cases worked out by hand, and the counts that other parts make in other ways."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3Config, Qwen3ForCausalLM

from qnext.model.config import ModelConfig
from qnext.model.summary import Summary
from qnext.train.costs import Shape
from qnext.train.optim import Optimizer, OptimSettings

from ..model.published import PUBLISHED
from .toy import TABLE, VOCABULARY, toy_model

DENSE = {"hidden": 4, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 2, "inner": 3, "vocabulary": 10}


def test_a_dense_case_by_hand() -> None:
    shape = Shape.dense(**DENSE)
    # q and o: 4x4 each; k and v: 4x2 each; three of 4x3
    assert shape.matrices == 2 * 16 + 2 * 8 + 3 * 12 == 84
    # with two norms of 4 and two of 2; a norm at the end, and two tables of 10x4
    assert shape.total == 84 + 12 + 4 + 80 and shape.active == 84 + 12 + 4 + 40
    # 140 parameters twice; two tokens seen of three on average, by 4 channels, scored and summed
    assert shape.forward_flops(3) == 280 + 4 * 4 * 2 == 312
    assert shape.training_flops(3) == 936
    assert shape.state_bytes() == 84 * (4 + 4 + 4) + 96 * (4 + 4 + 8)
    assert shape.gathered_bytes() == 2 * 2 * 96
    # 8 + 4 of q, k and v's rows, 4 of o, 3 + 3 inside, 4 back, and two norms are what the layer makes
    assert shape.layer_width == 4 + 2 + 2 + 4 + 3 + 3 + 4 * 2
    assert shape.activation_bytes(5, checkpointing=True) == 2 * 5 * (4 + 26) + 5 * 10 * 4
    assert shape.activation_bytes(5, checkpointing=False) == 2 * 5 * 26 + 5 * 10 * 4


def test_a_sparse_case_by_hand() -> None:
    """One linear and one attention layer of the toy; four experts of which two are chosen."""
    shape = Shape.of(ModelConfig.from_dict({**TABLE, "vocab_size": VOCABULARY}, mtp_layers=1))
    expert = 3 * 16 * 24
    moe = 4 * 24 + 5 * expert + 24
    attention = 24 * 32 + 2 * 24 * 8 + 16 * 24 + 2 * 8  # q with its gate, k and v, o, norms
    linear = 24 * (8 + 8 + 16 + 16) + 24 * 4 + 32 * 4 + 2 + 2 + 8 + 16 * 24
    trunk = 257 * 24 + 2 * moe + attention + linear + 5 * 24
    mtp = 24 * 48 + moe + attention + 5 * 24
    assert shape.total == trunk + mtp and shape.mtp == mtp and shape.routed == 3 * 4 * expert
    assert shape.active == trunk - 2 * 2 * expert
    assert shape.mtp_active == mtp - 2 * expert + 257 * 24
    assert shape.score_width == shape.mtp_score == 16 and shape.delta_state == 2 * 8 * 8
    forward = 2 * shape.active + 4 * 16 * 2.5 + 7 * 128
    assert shape.forward_flops(4) == forward
    assert shape.forward_flops(4, 2) == forward + 2 * (2 * shape.mtp_active + 4 * 16 * 2.5)
    assert shape.largest_routed == 4 * expert and shape.largest_layer == linear + moe + 2 * 24
    assert shape.gathered_bytes(4) == 4 * (shape.largest_layer - 3 * expert)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("mtp", [0, 1])
def test_counts_are_those_of_the_summary_and_of_the_network(tied: bool, mtp: int) -> None:
    config = ModelConfig.from_dict(
        {**TABLE, "vocab_size": VOCABULARY, "tie_word_embeddings": tied}, mtp_layers=mtp
    )
    shape, summary = Shape.of(config), Summary.of(config)
    assert (shape.total, shape.mtp, shape.active) == (
        summary.trunk + summary.mtp,
        summary.mtp,
        summary.active,
    )
    model = toy_model(tie_word_embeddings=tied, mtp_layers=mtp)
    assert shape.total == sum(parameter.numel() for parameter in model.parameters())


def test_the_published_count() -> None:
    config = ModelConfig.from_dict(PUBLISHED, mtp_layers=1)
    shape, summary = Shape.of(config), Summary.of(config)
    assert (shape.total, shape.active) == (summary.trunk + summary.mtp, summary.active)
    assert shape.total == pytest.approx(81.32e9, rel=1e-3) and shape.active == pytest.approx(3.56e9, rel=2e-3)


def test_state_is_what_trainer_and_optimiser_hold() -> None:
    model = toy_model()
    optimizer = Optimizer(model, model.config, OptimSettings())
    state = optimizer.state_dict()
    kept = [*state["momentum"].values(), *(tensor for pair in state["moments"].values() for tensor in pair)]
    for parameter in model.parameters():
        kept += [parameter.data, torch.zeros_like(parameter)]  # the gradient
    held = sum(tensor.numel() * tensor.element_size() for tensor in kept)
    assert Shape.of(model.config).state_bytes() == held


def test_dense_flops_are_those_that_torch_counts() -> None:
    """A dense Qwen3 by `transformers`, whose eager attention also computes what the mask then drops."""
    sizes = {
        "hidden": 32,
        "layers": 2,
        "heads": 4,
        "kv_heads": 2,
        "head_dim": 8,
        "inner": 48,
        "vocabulary": 64,
    }
    config = Qwen3Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=48, vocab_size=64, tie_word_embeddings=False, attn_implementation="eager",
    )  # fmt: skip
    model, tokens = Qwen3ForCausalLM(config), 16
    shape = Shape.dense(**sizes)
    assert shape.total == sum(parameter.numel() for parameter in model.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, tokens, dtype=torch.int64))
    norms = 2 * (2 * 32 + 2 * 8) + 32
    everything_seen = tokens * (shape.forward_flops(2 * tokens - 1) - 2 * norms)
    assert counter.get_total_flops() == everything_seen
