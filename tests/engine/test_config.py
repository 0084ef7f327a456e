"""The engine's resources: refusals, and what they come to for a model."""

from __future__ import annotations

from typing import Any

import pytest

from qnext.engine.config import EngineConfig
from qnext.model.config import ModelConfig
from qnext.model.state import StateSize

from ..model.published import PUBLISHED

MODEL = ModelConfig.from_dict(PUBLISHED)


@pytest.mark.parametrize(
    "name,value",
    [
        ("cache_bytes", 0),
        ("page_size", 0),
        ("max_sequences", 0),
        ("max_waiting", 0),
        ("step_tokens", -1),
        ("max_length", 1),
    ],
)
def test_nonsense_is_refused_by_name(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"^{name} "):
        EngineConfig(**{name: value})  # type: ignore[arg-type]


def test_pages_fill_what_the_states_leave() -> None:
    size = StateSize.of(MODEL)
    config = EngineConfig(cache_bytes=(1 << 30) + 4 * (size.delta + size.conv), max_sequences=4)
    assert config.page_count(MODEL, 2) == (1 << 30) // (24 * 1024 * 16)


def test_pages_beyond_use_are_not_taken() -> None:
    config = EngineConfig(cache_bytes=1 << 40, max_sequences=2, max_length=100, page_size=16)
    assert config.page_count(MODEL, 2) == 2 * 7


def test_states_that_leave_no_page_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^cache_bytes is 1073741824: 32 sequences of state alone take"):
        EngineConfig(cache_bytes=1 << 30).page_count(MODEL, 2)


@pytest.mark.parametrize("asked,limit", [(None, 262144), (1000, 1000), (1 << 20, 262144)])
def test_length_limit(asked: int | None, limit: int) -> None:
    assert EngineConfig(max_length=asked).length_limit(MODEL) == limit


def test_a_model_without_attention_needs_no_bytes_for_pages() -> None:
    table: dict[str, Any] = {**PUBLISHED, "num_hidden_layers": 1, "layer_types": ["linear_attention"]}
    config = EngineConfig(max_sequences=2, max_length=64)
    assert config.page_count(ModelConfig.from_dict(table), 2) == 8
