"""Rotary tables, plain and stretched by YaRN, against `transformers` and against the formula."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import Qwen3NextConfig
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRotaryEmbedding

from qnext.model.config import ModelConfig
from qnext.model.packing import Packing
from qnext.model.qwen3_next import Qwen3Next
from qnext.model.rope_scaling import Yarn
from qnext.model.rotary import frequencies, rotary_table
from qnext.model.state import State

from ..kernels.twins import distance
from .tiny import tiny_model, token_ids

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


NEAR_YARN = Yarn(factor=4.0, original_max_position_embeddings=64, beta_fast=4.0)


@pytest.mark.parametrize("dim", [16, 64])
def test_each_token_has_its_own_stretch(dim: int) -> None:
    config, _ = both({"head_dim": dim})
    yarn = replace(config, rope_scaling=NEAR_YARN)
    positions = torch.tensor([0, 1, 70, 500, 0, 1, 70, 500])
    stretched = torch.tensor([False, True] * 2 + [True, False] * 2)
    for mixed, plain, far in zip(
        rotary_table(yarn, positions, stretched),
        rotary_table(config, positions),
        rotary_table(yarn, positions),
        strict=True,
    ):
        assert mixed[stretched].equal(far[stretched])
        assert mixed[~stretched].equal(plain[~stretched])
        assert not far[2:4].equal(plain[2:4])


def test_without_yarn_nothing_is_stretched() -> None:
    config, _ = both({})
    wanted = rotary_table(config, torch.arange(9))
    for found in (rotary_table(config, torch.arange(9), torch.full((9,), flag)) for flag in (True, False)):
        assert all(a.equal(b) for a, b in zip(found, wanted, strict=True))


def models(**changes: Any) -> tuple[Qwen3Next, Qwen3Next]:
    """The same weights without YaRN, and with it."""
    plain, yarn = tiny_model(**changes), tiny_model(**changes, rope_scaling=NEAR_YARN)
    yarn.load_state_dict(plain.state_dict())
    return plain, yarn


def packed(lengths: list[int], stretched: list[bool] | None, contexts: list[int] | None = None) -> Packing:
    """Three sequences of 9 pages of 16 tokens each."""
    pages = [[9 * n + i for i in range(9)] for n in range(3)]
    return Packing.cached(lengths, contexts or [0] * 3, pages, range(3), 16, stretched=stretched)


@torch.inference_mode()
def test_rows_of_one_kind_are_bit_equal_to_the_model_of_that_kind() -> None:
    lengths, ids = [100, 1, 37], token_ids(138)
    plain, yarn = models()
    near, far = plain(ids, Packing.of(lengths)), yarn(ids, Packing.of(lengths))
    assert distance(near, far) > 1e-3
    assert yarn(ids, packed(lengths, [False] * 3)).equal(near)
    assert yarn(ids, packed(lengths, [True] * 3)).equal(far)
    assert yarn(ids, packed(lengths, None)).equal(far)
    hidden = torch.randn(138, 48)
    near, far = (model.mtp_hidden(hidden, ids, Packing.of(lengths)) for model in (plain, yarn))
    assert distance(near, far) > 1e-3
    assert yarn.mtp_hidden(hidden, ids, packed(lengths, [False] * 3)).equal(near)
    assert yarn.mtp_hidden(hidden, ids, packed(lengths, [True] * 3)).equal(far)


@torch.inference_mode()
@pytest.mark.parametrize("kinds", [[True, False, True], [False, True, False]], ids=str)
def test_kinds_mix_in_one_row(kinds: list[bool]) -> None:
    """Bit by bit, also through the caches. (A dense network: an expert's bits depend on its other tokens.)"""
    lengths, ids = [80, 1, 37], token_ids(121)
    plain, yarn = models(num_experts=0)
    states = [
        State.allocate(plain.config, pages=27, page_size=16, slots=3, dtype=torch.float32) for _ in range(3)
    ]
    at, contexts = 0, [0] * 3
    for step in (lengths, [1, 1, 1]):
        part = ids[at : at + sum(step)]
        row = packed(step, kinds, contexts)
        whole = replace(row, arrays=row.arrays._replace(stretched=None))
        found = yarn(part, row, states[0]).split(step)
        near, far = plain(part, whole, states[1]).split(step), yarn(part, whole, states[2]).split(step)
        for n, kind in enumerate(kinds):
            assert found[n].equal((far if kind else near)[n])
        assert not near[0].equal(far[0]) and not near[2].equal(far[2])
        at, contexts = at + sum(step), lengths
