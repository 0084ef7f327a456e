"""The multi-token-prediction head against its formulas, one position after another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from qnext.model.packing import Packing
from qnext.model.qwen3_next import Qwen3Next
from qnext.model.state import State

from ..kernels.twins import distance
from .tiny import tiny_model, token_ids

pytestmark = pytest.mark.usefixtures("poisoned_memory")

MODEL = tiny_model()


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + weight)


def turn(x: Tensor, position: int) -> Tensor:
    """Rotary position on the first quarter (4 of 16 dimensions) of one head."""
    out = x.clone()
    for i in range(2):
        angle = torch.tensor(position * 10000.0 ** (-i / 2), dtype=torch.float64)
        out[i] = x[i] * angle.cos() - x[i + 2] * angle.sin()
        out[i + 2] = x[i + 2] * angle.cos() + x[i] * angle.sin()
    return out


def twin(model: Qwen3Next, hidden: Tensor, next_ids: Tensor) -> Tensor:
    """`mtp_hidden` of one sequence, written out in float64 from the checkpoint's own names."""
    w = {name: weight.double() for name, weight in model.state_dict().items()}
    p = {name.removeprefix("mtp.layers.0."): x for name, x in w.items() if name.startswith("mtp.layers.0.")}
    embedded = norm(w["embed_tokens.weight"][next_ids], w["mtp.pre_fc_norm_embedding.weight"])
    stream = torch.cat((embedded, norm(hidden.double(), w["mtp.pre_fc_norm_hidden.weight"])), -1)
    stream = stream @ w["mtp.fc.weight"].T
    normed = norm(stream, p["input_layernorm.weight"])
    q, k, v, gate = (
        (normed @ p[f"self_attn.{name}_proj.weight"].T).view(len(normed), -1, 16)
        for name in ("q", "k", "v", "gate")
    )
    q, k = norm(q, p["self_attn.q_norm.weight"]), norm(k, p["self_attn.k_norm.weight"])
    mixed = torch.zeros_like(q)
    for i in range(len(q)):
        for head in range(4):
            scores = [turn(q[i, head], i) @ turn(k[j, head // 2], j) / 4 for j in range(i + 1)]
            mixed[i, head] = torch.stack(scores).softmax(0) @ v[: i + 1, head // 2]
    stream = stream + (mixed * gate.sigmoid()).flatten(1) @ p["self_attn.o_proj.weight"].T
    normed = norm(stream, p["post_attention_layernorm.weight"])
    rows = []
    for x in normed:
        probs = (p["mlp.gate.weight"] @ x).softmax(0)
        best = probs.topk(3)
        total = torch.zeros_like(x)
        for share, expert in zip(best.values / best.values.sum(), best.indices, strict=True):
            gate, up = (p["mlp.experts.gate_up_proj"][expert] @ x).chunk(2)
            total += share * (p["mlp.experts.down_proj"][expert] @ (F.silu(gate) * up))
        gate, up = (p["mlp.shared_expert.gate_up_proj.weight"] @ x).chunk(2)
        shared = p["mlp.shared_expert.down_proj.weight"] @ (F.silu(gate) * up)
        rows.append(total + (p["mlp.shared_expert_gate.weight"] @ x).sigmoid() * shared)
    return norm(stream + torch.stack(rows), w["mtp.norm.weight"])


@torch.inference_mode()
@pytest.mark.parametrize("length", [1, 2, 30])
def test_equals_its_formulas(length: int) -> None:
    ids = token_ids(length + 1)
    hidden = MODEL(ids[:-1])
    found = MODEL.mtp_hidden(hidden, ids[1:])
    assert found.shape == (length, 48)
    assert distance(found, twin(MODEL, hidden, ids[1:])) < 1e-5


@torch.inference_mode()
def test_packed_equals_alone() -> None:
    lengths, ids = (3, 1, 20), token_ids(24)
    hidden, following = MODEL(ids, Packing.of(lengths)), token_ids(24, seed=1)
    found = MODEL.mtp_hidden(hidden, following, Packing.of(lengths))
    for part, h, after in zip(
        found.split(lengths), hidden.split(lengths), following.split(lengths), strict=True
    ):
        assert distance(part, MODEL.mtp_hidden(h, after)) < 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("pieces", [[1] * 12, [5, 7], [9, 1, 2]], ids=str)
def test_with_a_cache(pieces: list[int]) -> None:
    ids = token_ids(13)
    hidden, following = MODEL(ids[:-1]), ids[1:]
    cache = tuple(torch.full((5, 4, 2, 16), float("nan")) for _ in range(2))
    outs, at = [], 0
    for length in pieces:
        packing = Packing.cached([length], [at], [[4, 0, 2]], [0], 4)
        part = slice(at, at + length)
        outs.append(MODEL.mtp_hidden(hidden[part], following[part], packing, (cache[0], cache[1])))
        at += length
    assert distance(torch.cat(outs), MODEL.mtp_hidden(hidden, following)) < 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("pieces", [[1] * 12, [5, 7], [9, 1, 2]], ids=str)
def test_with_a_cache_whose_first_cell_is_empty(pieces: list[int]) -> None:
    """The entry for token j, made of it and the hidden state before it, lies in cell j beside the trunk's."""
    ids, page_size = token_ids(13), 4
    hidden, following = MODEL(ids[:-1]), ids[1:]
    state = State.allocate(
        MODEL.config, pages=6, page_size=page_size, slots=1, dtype=torch.float32, drafts=2, mtp=True
    )
    state.pages.fill_(float("nan"))
    assert state.mtp is not None
    pages, outs, at = [4, 0, 2, 5], [], 0
    for length in pieces:
        packing = Packing.cached([length], [at + 1], [pages], [0], page_size, first=1)
        part = slice(at, at + length)
        outs.append(MODEL.mtp_hidden(hidden[part], following[part], packing, state.mtp))
        at += length
    assert distance(torch.cat(outs), MODEL.mtp_hidden(hidden, following)) < 1e-5
    keys = state.mtp[0][pages].flatten(0, 1)
    assert keys[[0, *range(13, 16)]].isnan().all() and keys[1:13].isfinite().all()
    trunk = [pair for pair in state.kv if pair is not None]
    assert all(stored.isnan().all() for pair in trunk for stored in pair)


@torch.inference_mode()
@pytest.mark.parametrize("shape", [{}, {"attention_bias": True}, {"mtp_normed_input": False}], ids=str)
def test_reading_leaves_in_the_cache_what_answering_does(shape: dict[str, Any]) -> None:
    model, ids = tiny_model(**shape), token_ids(31)
    caches = [torch.full((2, 9, 4, 2, 16), float("nan")) for _ in range(2)]
    for at, lengths in ((1, (9, 2)), (10, (1, 15))):
        pages = [[8, 0, 2, 7, 1], [3, 6, 4, 5, 1]]
        packing = Packing.cached(lengths, [at, 1 if at == 1 else 3], pages, [0, 1], 4, first=1)
        hidden, following = model(ids[: sum(lengths)]), ids[1 : sum(lengths) + 1]
        answered, read = ((cache[0], cache[1]) for cache in caches)
        model.mtp_hidden(hidden, following, packing, answered)
        model.mtp_read(hidden, following, packing, read)
    assert torch.equal(caches[0].nan_to_num(7.0), caches[1].nan_to_num(7.0))


@torch.inference_mode()
def test_rejected_drafts_are_written_over() -> None:
    """Each row: what was accepted of the last, then drafts that are right, wrong or not there."""
    ids = token_ids(30)
    hidden, following = MODEL(ids[:-1]), ids[1:]
    wanted = MODEL.mtp_hidden(hidden, following)
    cache = tuple(torch.full((9, 4, 2, 16), float("nan")) for _ in range(2))
    at = 0
    for certain, wrong in ((5, 3), (1, 4), (2, 0), (1, 1), (9, 4), (1, 0), (10, 2)):
        part = slice(at, at + certain)
        noise = torch.randn(wrong, 48, generator=torch.Generator().manual_seed(at))
        packing = Packing.cached([certain + wrong], [at + 1], [[*range(8, -1, -1)]], [0], 4, first=1)
        states, tokens = torch.cat((hidden[part], noise)), torch.cat((following[part], token_ids(wrong)))
        found = MODEL.mtp_hidden(states, tokens, packing, (cache[0], cache[1]))
        assert distance(found[:certain], wanted[part]) < 1e-5
        at += certain
    assert at == 29


@torch.inference_mode()
def test_a_dense_network_has_a_dense_head() -> None:
    model = tiny_model(num_experts=0)
    assert "mtp.layers.0.mlp.gate_up_proj.weight" in model.state_dict()
    assert model.mtp_hidden(model(token_ids(4)), token_ids(4)).isfinite().all()


@torch.inference_mode()
def test_the_switch_for_states_before_the_final_norm() -> None:
    """With `mtp_normed_input` off the head gets what went into a norm, not what came out: the trunk's, and
    for further guesses its own."""
    model = tiny_model(mtp_normed_input=False)
    ids = token_ids(12)
    before: dict[str, Tensor] = {}
    for name, part in (("trunk", model.norm), ("head", model.mtp.norm)):  # type: ignore[union-attr]
        part.register_forward_pre_hook(lambda _, given, name=name: before.update({name: given[0]}))
    hidden = model(ids[:-1])
    found = model.mtp_hidden(hidden, ids[1:])
    assert distance(found, twin(model, before["trunk"], ids[1:])) < 1e-4
    assert distance(found, twin(model, hidden, ids[1:])) > 1e-2
    raw = before["head"]
    further = model.mtp_hidden(found, ids[1:], own=True)
    assert distance(further, twin(model, raw, ids[1:])) < 1e-4


@torch.inference_mode()
def test_a_channel_without_gain_is_left_out() -> None:
    model = tiny_model(mtp_normed_input=False)
    model.norm.weight[3] = -1.0
    assert model.mtp_hidden(model(token_ids(4)), token_ids(4)).isfinite().all()
