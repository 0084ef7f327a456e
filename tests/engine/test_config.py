"""The engine's resources: refusals, and what they come to for a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qnext.engine.config import SPARE_SLOTS, STATES_EACH, EngineConfig, native_length
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
        ("max_waiting", -1),
        ("step_tokens", -1),
        ("max_length", 1),
        ("draft_tokens", -1),
        ("draft_tokens", 9),
        ("checkpoint_stride", 0),
        ("host_cache_bytes", -1),
        ("disk_cache_bytes", -1),
    ],
)
def test_nonsense_is_refused_by_name(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"^{name} "):
        EngineConfig(**{name: value})  # type: ignore[arg-type]


def test_pages_fill_what_the_states_leave() -> None:
    size = StateSize.of(MODEL)
    states = 4 * (size.delta + size.conv)
    config = EngineConfig(cache_bytes=(1 << 30) + states, max_sequences=4, draft_tokens=0, prefix_cache=False)
    assert config.page_count(MODEL, 2) == (1 << 30) // (24 * 1024 * 16)


@pytest.mark.parametrize("mtp", [False, True])
def test_guesses_and_states_on_the_way_take_their_room_too(mtp: bool) -> None:
    size = StateSize.of(MODEL, 2, 5, mtp=mtp)
    config = EngineConfig(
        cache_bytes=(1 << 30) + (4 + SPARE_SLOTS) * size.slot, max_sequences=4, draft_tokens=5
    )
    assert config.page_count(MODEL, 2, mtp=mtp) == (1 << 30) // ((24 + 2 * mtp) * 1024 * 16)
    assert size.slot > StateSize.of(MODEL).slot


def test_pages_beyond_use_are_not_taken() -> None:
    fields: dict[str, Any] = {"cache_bytes": 1 << 40, "max_sequences": 2, "page_size": 16}
    config = EngineConfig(**fields, max_length=100, prefix_cache=False)
    assert config.page_count(MODEL, 2) == 2 * 7
    config = EngineConfig(**fields, max_length=111, prefix_cache=False, draft_tokens=2)
    assert config.page_count(MODEL, 2) == 2 * 8  # guesses lie beyond the last token
    config = EngineConfig(**fields, max_length=100, draft_tokens=0)  # as much again is kept, and states
    state_pages = -(-StateSize.of(MODEL).slot // (24 * 1024 * 16))
    assert config.page_count(MODEL, 2) == 2 * (2 * 7) + 2 * STATES_EACH * state_pages


def test_states_that_leave_no_page_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^cache_bytes is 1073741824: 36 sequences of state alone take"):
        EngineConfig(cache_bytes=1 << 30).page_count(MODEL, 2)


@pytest.mark.parametrize("asked,limit", [(None, 262144), (1000, 1000), (1 << 20, 262144)])
def test_length_limit(asked: int | None, limit: int) -> None:
    assert EngineConfig(max_length=asked).length_limit(MODEL) == limit


def test_a_model_without_attention_needs_no_bytes_for_pages() -> None:
    table: dict[str, Any] = {**PUBLISHED, "num_hidden_layers": 1, "layer_types": ["linear_attention"]}
    config = EngineConfig(max_sequences=2, max_length=64, draft_tokens=0)
    assert config.page_count(ModelConfig.from_dict(table), 2) == 8


def test_batch_invariance_leaves_out_what_depends_on_others() -> None:
    config = EngineConfig(batch_invariant=True, max_sequences=7, draft_tokens=3)
    assert (config.drafts, config.keeps_prefixes, config.slots) == (0, False, 7)
    config = EngineConfig(max_sequences=7, draft_tokens=3)
    assert (config.drafts, config.keeps_prefixes, config.slots) == (3, True, 7 + SPARE_SLOTS)


@pytest.mark.parametrize("fields", [{"host_cache_bytes": 1}, {"disk_cache": Path("somewhere")}])
@pytest.mark.parametrize("without", [{"prefix_cache": False}, {"batch_invariant": True}])
def test_a_second_tier_needs_the_first(fields: dict[str, Any], without: dict[str, Any]) -> None:
    EngineConfig(**fields)
    with pytest.raises(ValueError, match="leave prefix_cache on"):
        EngineConfig(**fields, **without)


def test_yarn_gives_length_beyond_the_native_one() -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 262144}
    model = ModelConfig.from_dict({**PUBLISHED, "rope_scaling": scaling})
    assert (native_length(MODEL), native_length(model)) == (262144, 262144)
    assert EngineConfig().length_limit(model) == 4 * 262144
    assert EngineConfig(max_length=300_000).length_limit(model) == 300_000
