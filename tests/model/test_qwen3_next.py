"""The whole network: sizes, packing, caches, and what it refuses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qnext.model.config import ModelConfig
from qnext.model.packing import Packing
from qnext.model.qwen3_next import Qwen3Next
from qnext.model.state import State

from ..kernels.twins import distance
from .published import PUBLISHED
from .tiny import tiny_model, token_ids

pytestmark = pytest.mark.usefixtures("poisoned_memory")

MODELS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dense and irregular": {
        "layer_types": ("full_attention", "linear_attention", "linear_attention"),
        "num_hidden_layers": 3,
        "num_experts": 0,
        "attention_bias": True,
        "tie_word_embeddings": True,
        "linear_conv_kernel_dim": 1,
    },
    "no attention": {"layer_types": ("linear_attention",) * 2, "num_hidden_layers": 2},
    "attention only": {"layer_types": ("full_attention",) * 2, "num_hidden_layers": 2},
}
MODEL = tiny_model()


def test_parameters_of_the_published_model() -> None:
    model = Qwen3Next(ModelConfig.from_dict(PUBLISHED), device="meta")
    sizes = {"mtp": 0, "trunk": 0}
    for name, weight in model.named_parameters():
        assert weight.is_meta
        sizes["mtp" if name.startswith("mtp.") else "trunk"] += weight.numel()
    assert round(sizes["trunk"] / 1e9, 2) == 79.67
    assert round(sizes["mtp"] / 1e9, 2) == 1.65
    assert not list(model.buffers())


def test_the_canonical_names() -> None:
    names = {
        name.replace("layers.3", "layers.N").replace("layers.0", "layers.N") for name in MODEL.state_dict()
    }
    assert {
        "embed_tokens.weight",
        "lm_head.weight",
        "norm.weight",
        "layers.N.input_layernorm.weight",
        "layers.N.linear_attn.qkvz_proj.weight",
        "layers.N.linear_attn.ba_proj.weight",
        "layers.N.linear_attn.conv1d.weight",
        "layers.N.linear_attn.A_log",
        "layers.N.linear_attn.norm.weight",
        "layers.N.self_attn.gate_proj.weight",
        "layers.N.mlp.experts.gate_up_proj",
        "layers.N.mlp.shared_expert.down_proj.weight",
        "layers.N.mlp.shared_expert_gate.weight",
        "mtp.fc.weight",
        "mtp.layers.N.self_attn.k_norm.weight",
    } <= names
    tied = tiny_model(tie_word_embeddings=True)
    assert "lm_head.weight" not in tied.state_dict()
    hidden = torch.randn(3, 48)
    assert tied.logits(hidden).equal(hidden @ tied.embed_tokens.weight.T)


def test_fresh_weights() -> None:
    config = ModelConfig(**{**MODEL.config.__dict__, "attention_bias": True, "initializer_range": 0.03})
    for name, weight in Qwen3Next(config).named_parameters():
        if name.endswith(("A_log",)):
            assert weight.exp().min() >= 1e-3 and weight.exp().max() <= 16
        elif name.endswith(("dt_bias", "linear_attn.norm.weight")):
            assert (weight == 1).all(), name
        elif "norm" in name or name.endswith("bias"):
            assert (weight == 0).all(), name
        else:
            assert 0.5 < weight.std() / 0.03 < 1.5, name


def test_dtype_and_device_of_a_new_model() -> None:
    assert Qwen3Next(MODEL.config, dtype=torch.bfloat16).embed_tokens.weight.dtype == torch.bfloat16
    assert Qwen3Next(MODEL.config).norm.weight.dtype == torch.float32
    with torch.device("meta"):  # what the default device is does not matter
        model = Qwen3Next(MODEL.config)
    assert model(token_ids(3)).device.type == "cpu"
    assert Qwen3Next(MODEL.config, device="meta").norm.weight.is_meta


@torch.inference_mode()
@pytest.mark.parametrize("kind", MODELS)
def test_packed_sequences_equal_each_alone(kind: str) -> None:
    model, lengths = tiny_model(**MODELS[kind]), (1, 70, 3, 4, 5, 64, 1, 130)
    ids = token_ids(sum(lengths))
    packed = model(ids, Packing.of(lengths))
    alone = torch.cat([model(part) for part in ids.split(lengths)])
    assert distance(packed, alone) < 2e-5


@torch.inference_mode()
def test_a_neighbour_is_not_seen_at_all() -> None:
    lengths, ids = (5, 70, 6), token_ids(81)
    other = ids.clone()
    other[5:75] = token_ids(70, seed=1)
    a, b = (MODEL(x, Packing.of(lengths)) for x in (ids, other))
    assert not torch.allclose(a[5:75], b[5:75], atol=1e-2)
    for part in (slice(0, 5), slice(75, 81)):
        assert distance(a[part], b[part]) < 2e-6


@torch.inference_mode()
def test_later_tokens_change_nothing() -> None:
    ids = token_ids(100)
    whole = MODEL(ids)
    for length in (1, 5, 64, 65, 99):
        assert distance(MODEL(ids[:length]), whole[:length]) < 2e-5


PAGE = 8


def cached(
    model: Qwen3Next, rows: Sequence[Tensor], steps: Sequence[Sequence[int]], seed: int
) -> list[Tensor]:
    """Run sequences together through the caches, `steps[s][n]` tokens of sequence n in step s, on pages and
    slots in disorder; memory that no token has been written to holds NaN."""
    pages_each = [-(-len(row) // PAGE) for row in rows]
    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(sum(pages_each) + 2, generator=rng).tolist()
    pages = [[order.pop() for _ in range(count)] for count in pages_each]
    slots = torch.randperm(len(rows) + 1, generator=rng)[: len(rows)].tolist()
    state = State.allocate(
        model.config, pages=sum(pages_each) + 2, page_size=PAGE, slots=len(rows) + 1, dtype=torch.float32
    )
    for tensor in (state.pages, *state.slotted):
        tensor.fill_(float("nan"))
    for slot in slots:
        state.clear(slot)
    done, outs = [0] * len(rows), [[] for _ in rows]  # type: list[int], list[list[Tensor]]
    for step in steps:
        live = [n for n in range(len(rows)) if step[n]]
        if live:
            ids = torch.cat([rows[n][done[n] : done[n] + step[n]] for n in live])
            lengths = [step[n] for n in live]
            packing = Packing.cached(
                lengths,
                [done[n] for n in live],
                [pages[n][: -(-(done[n] + step[n]) // PAGE)] for n in live],
                [slots[n] for n in live],
                PAGE,
            )
            for n, part in zip(live, model(ids, packing, state).split(lengths), strict=True):
                outs[n].append(part)
                done[n] += step[n]
    assert done == [len(row) for row in rows]
    return [torch.cat(parts) for parts in outs]


@torch.inference_mode()
@pytest.mark.parametrize("kind", MODELS)
def test_token_by_token_equals_one_forward(kind: str) -> None:
    model, row = tiny_model(**MODELS[kind]), token_ids(70)
    (found,) = cached(model, [row], [[1]] * 70, seed=0)
    assert distance(found, model(row)) < 2e-5


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_any_split_through_the_caches_equals_one_forward(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 3), label="sequences")
    steps = data.draw(
        st.lists(
            st.lists(st.sampled_from([0, 1, 1, 2, 4, 5, 30, 66]), min_size=count, max_size=count),
            min_size=1,
            max_size=6,
        ),
        label="steps",
    )
    steps.append([1] * count)  # nobody is empty
    lengths = [sum(step[n] for step in steps) for n in range(count)]
    rows = list(token_ids(sum(lengths)).split(lengths))
    with torch.inference_mode():
        for row, found in zip(rows, cached(MODEL, rows, steps, data.draw(st.integers(0, 9))), strict=True):
            assert distance(found, MODEL(row)) < 5e-5


def test_routing_is_recorded_where_asked() -> None:
    model = tiny_model(decoder_sparse_step=2)
    routing: list[tuple[Tensor, Tensor]] = []
    ids = token_ids(9)
    assert model(ids, routing=routing).equal(model(ids))
    assert len(routing) == 2  # layers 1 and 3
    for probs, chosen in routing:
        assert probs.dtype == torch.float32
        assert torch.allclose(probs.sum(-1), torch.ones(9))
        assert chosen.shape == (9, 3)
        assert probs.topk(3).indices.equal(chosen)


def test_every_weight_gets_a_gradient() -> None:
    model = tiny_model(attention_bias=True, mlp_only_layers=(1,)).train().requires_grad_(True)
    ids = token_ids(200)
    hidden = model(ids, Packing.of([120, 3, 77]))
    loss = (
        model.logits(hidden).logsumexp(-1).sum() + model.logits(model.mtp_hidden(hidden, ids)).square().sum()
    )
    loss.backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name
        assert weight.grad.count_nonzero() > 0, name


def test_without_an_mtp_head() -> None:
    model = tiny_model(mtp_layers=0)
    assert not any(name.startswith("mtp.") for name in model.state_dict())
    with pytest.raises(ValueError, match="MTP head"):
        model.mtp_hidden(torch.zeros(2, 48), token_ids(2))
