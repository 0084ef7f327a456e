"""The caches that the model declares: their bytes, shapes and clearing."""

from __future__ import annotations

import torch

from qnext.model.config import ModelConfig
from qnext.model.state import State, StateSize

from .published import PUBLISHED


def test_bytes_of_the_published_model() -> None:
    size = StateSize.of(ModelConfig.from_dict(PUBLISHED))
    assert size.kv_token == 24 << 10
    assert size.delta == 72 << 20
    assert size.conv == 36 * 8192 * 3 * 2
    single = StateSize.of(ModelConfig.from_dict(PUBLISHED), itemsize=4)
    assert (single.kv_token, single.delta, single.conv) == (48 << 10, 72 << 20, 2 * size.conv)


def test_allocated_bytes_are_the_declared_ones() -> None:
    config = ModelConfig.from_dict({**PUBLISHED, "vocab_size": 5, "head_dim": 16, "linear_num_key_heads": 4})
    state = State.allocate(config, pages=3, page_size=2, slots=5, dtype=torch.bfloat16)
    size = StateSize.of(config)

    def held(tensors: list[torch.Tensor | None]) -> int:
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)

    assert held([t for pair in state.kv if pair for t in pair]) == size.kv_token * 3 * 2
    assert held(list(state.delta)) == size.delta * 5
    assert held(list(state.conv)) == size.conv * 5
    for kind, kv, delta, conv in zip(config.layer_types, state.kv, state.delta, state.conv, strict=True):
        assert (kv is not None) == (kind == "full_attention") == (delta is None) == (conv is None)


def test_clear_touches_one_slot() -> None:
    config = ModelConfig(num_hidden_layers=2, layer_types=("linear_attention", "full_attention"))
    state = State.allocate(config, pages=1, page_size=1, slots=3, dtype=torch.float32)
    delta, conv = state.delta[0], state.conv[0]
    assert delta is not None and conv is not None
    delta.fill_(float("nan"))
    conv.fill_(float("nan"))
    state.clear(1)
    for tensor in (delta, conv):
        assert tensor[1].count_nonzero() == 0
        assert tensor[[0, 2]].isnan().all()
