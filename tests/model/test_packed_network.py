"""The network on packed weights is the float network on the numbers that its bytes mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from qnext.kernels.packed import BITS
from qnext.model import packed_step
from qnext.model.layers import Routing
from qnext.model.network import load_network
from qnext.model.packed_layers import PackedMoE
from qnext.model.packed_network import Activations, PackedQwen3Next
from qnext.model.packing import Packing
from qnext.model.state import State
from qnext.models import locate

from .packed_tiny import packed_pair, packed_tiny
from .tiny import tiny_model, token_ids

SHAPES: list[dict[str, Any]] = [
    {},
    {"tie_word_embeddings": True, "attention_bias": True},
    {"mlp_only_layers": (1,), "shared_expert_intermediate_size": 40, "norm_topk_prob": False},
    {"mtp_normed_input": False, "num_hidden_layers": 1, "layer_types": ("full_attention",)},
    {"mtp_layers": 0, "partial_rotary_factor": 1.0, "hidden_size": 80},
    {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 96},
]


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@torch.inference_mode()
@pytest.mark.parametrize("kind", BITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_exact(kind: str, shape: dict[str, Any]) -> None:
    packed, twin = packed_pair(kind, "exact", **shape)
    for length in (1, 7, 150):
        ids = token_ids(length, seed=length)
        hidden, wanted = packed(ids), twin(ids)
        assert error(hidden, wanted) < 1e-5
        assert error(packed.logits(hidden), twin.logits(wanted)) < 1e-5
        if packed.mtp is not None:
            for own in (False, True):
                found = packed.mtp_hidden(hidden, ids, own=own)
                assert error(found, twin.mtp_hidden(wanted, ids, own=own)) < 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_rounded_inputs_are_near(kind: str) -> None:
    packed, twin = packed_pair(kind, "int8")
    ids = token_ids(100)
    assert 1e-4 < error(packed.logits(packed(ids)), twin.logits(twin(ids))) < 0.05


@torch.inference_mode()
def test_several_sequences_and_caches() -> None:
    """A prompt in uneven pieces beside another sequence, then token by token: the same to rounding, and a
    token beside others the same to the bit."""
    packed = packed_tiny("float32", "exact")
    ids = token_ids(90)
    whole = packed(ids)

    def state() -> State:
        return State.allocate(packed.config, pages=12, page_size=16, slots=2, dtype=torch.float32)

    pages, at = [list(range(6)), list(range(6, 12))], 0
    beside, alone = state(), state()
    for length in (33, 1, 20, 1, 1, 34):
        own = Packing.cached([length], [at], pages[:1], [0], 16)
        both = Packing.cached([length, 1], [at, 0], pages, [0, 1], 16)
        some = ids[at : at + length]
        hidden = packed(some, own, alone)
        assert error(hidden, whole[at : at + length]) < 1e-5
        assert torch.equal(packed(torch.cat((some, ids[:1])), both, beside)[:length], hidden)
        beside.clear(1)
        at += length


@torch.inference_mode()
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activations", ["exact", "int8"])
def test_mixers_take_long_rows_piece_by_piece(
    shape: dict[str, Any], activations: Activations, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, caches and copies of states included."""
    packed = packed_tiny("int4", activations, **shape)
    ids, found = token_ids(330), []
    pages = [list(range(16)), [16], list(range(17, 23)), list(range(23, 32))]
    more = {"replays": [0, 1, 0, 0], "drafts": [0, 0, 0, 2], "saves": [(0, 128, 4), (0, 150, 5), (3, 64, 6)]}
    for size in (1024, 128):
        monkeypatch.setattr(packed_step, "PIECE", size)
        states = State.allocate(packed.config, pages=32, page_size=16, slots=7, dtype=torch.float32, drafts=2)
        states.pages.zero_()
        before = Packing.cached([60, 3], [0, 0], pages[:2], [0, 1], 16, drafts=[0, 1])
        packed(ids[:63], before, states)
        row = Packing.cached([150, 1, 49, 130], [60, 3, 0, 0], pages, [0, 1, 2, 3], 16, **more)  # type: ignore[arg-type]
        found.append((packed(ids, row, states), states))
    (one, whole), (other, cut) = found
    assert torch.equal(one, other) and torch.equal(whole.pages, cut.pages)
    assert all(map(torch.equal, whole.slotted, cut.slotted))


@torch.inference_mode()
@pytest.mark.parametrize("kind", BITS)
@pytest.mark.parametrize("shape", [{}, {"attention_bias": True}, {"mtp_normed_input": False}], ids=str)
@pytest.mark.parametrize("cached", [torch.float32, torch.bfloat16], ids=str)
def test_the_mtp_head_reads_what_it_would_answer(
    kind: str, shape: dict[str, Any], cached: torch.dtype
) -> None:
    """To the bit, for short and long pieces."""
    packed = packed_tiny(kind, "int8", **shape)
    ids = token_ids(130)
    caches = [torch.full((2, 10, 16, 2, 16), 7.0, dtype=cached) for _ in range(2)]
    packing = Packing.cached((110, 9), [1, 20], [[*range(8)], [8, 9, 0]], [0, 1], 16, first=1)
    hidden, following = packed(ids[:119]), ids[1:120]
    packed.mtp_hidden(hidden, following, packing, (caches[0][0], caches[0][1]))
    packed.mtp_read(hidden, following, packing, (caches[1][0], caches[1][1]))
    assert torch.equal(caches[0], caches[1]) and not torch.equal(caches[0], torch.full_like(caches[0], 7.0))


@torch.inference_mode()
def test_routing_is_told() -> None:
    packed, twin = packed_pair("float32", "exact")
    ids = token_ids(20)
    found: Routing = []
    wanted: Routing = []
    packed(ids, routing=found)
    twin(ids, routing=wanted)
    assert len(found) == len(wanted)
    for (probs, chosen), (other_probs, other_chosen) in zip(found, wanted, strict=True):
        assert torch.equal(chosen, other_chosen)
        assert torch.allclose(probs, other_probs, atol=1e-5)


@pytest.mark.parametrize("kind", BITS)
def test_a_wide_shared_expert_is_several(kind: str) -> None:
    """Where it is cut in whole groups of columns; else it is computed by itself."""
    for width, count in ((32, 1), (96, 3), (80, 0)):
        shape = {"moe_intermediate_size": 32, "shared_expert_intermediate_size": width}
        found = packed_tiny(kind, "int8", **shape).layers[0].mlp
        assert isinstance(found, PackedMoE)
        assert (found.experts.shared, found.shared is None) == (count, count > 0)


@pytest.mark.parametrize("name", ["tiny-base", "tiny-instruct", "tiny-thinking"])
def test_the_models_at_hand_are_played_from_tapes(name: str) -> None:
    """Every layer of them, without which a token takes three times as long."""
    network = load_network(locate(name))
    assert isinstance(network, PackedQwen3Next) and network.mtp is not None
    assert all(layer.steady for layer in (*network.layers, network.mtp.layer))


def test_without_mtp_guesses_are_refused() -> None:
    packed = packed_tiny("float32", "exact", mtp_layers=0)
    with pytest.raises(ValueError, match="no MTP head"):
        packed.mtp_hidden(torch.zeros(1, 48), token_ids(1))
    with pytest.raises(ValueError, match="no MTP head"):
        packed.mtp_read(torch.zeros(1, 48), token_ids(1), Packing.of([1]), (torch.empty(0), torch.empty(0)))
    assert tiny_model(mtp_layers=0).mtp is None
