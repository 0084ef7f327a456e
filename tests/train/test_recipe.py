"""Recipes: the schedules they describe, the mistakes they refuse, and that those we ship can be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qnext.model.config import ModelConfig
from qnext.train.mixture import DataSpec, Part
from qnext.train.recipe import Heldout, LossSettings, Recipe, Schedule

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))


def test_learning_rate_rises_stays_and_falls() -> None:
    schedule = Schedule(steps=100, warmup_steps=4, decay_fraction=0.25)
    scales = [schedule.lr_scale(step) for step in range(100)]
    assert scales[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert set(scales[4:76]) == {1.0}
    assert scales[76:] == pytest.approx([(100 - step) / 25 for step in range(76, 100)])
    assert min(scales) > 0


def test_flat_schedule() -> None:
    schedule = Schedule(steps=3, warmup_steps=0, decay_fraction=0)
    assert [schedule.lr_scale(step) for step in range(3)] == [1.0, 1.0, 1.0]


def test_mtp_weight_moves_in_a_line() -> None:
    weights = LossSettings(mtp_start=0.3, mtp_end=0.1)
    assert [weights.mtp(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.3, 0.2, 0.1])


def recipe(**changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "name": "toy",
        "output": Path("out"),
        "tokenizer": Path("tokenizer"),
        "schedule": Schedule(10),
        "data": DataSpec((Part("chat", 1.0),)),
        "model": {"hidden_size": 24},
    }
    return Recipe(**{**fields, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init": Path("base")}, "either init"),
        ({"model": {}}, "give init"),
        ({"threads": 0}, "threads must be 1 or more"),
        ({"log_every": 0}, "log_every"),
        ({"eval_every": 0}, "eval_every"),
        ({"save_every_minutes": -1.0}, "save_every_minutes"),
    ],
)
def test_nonsense_is_refused(changes: dict[str, Any], message: str) -> None:
    recipe()
    with pytest.raises(ValueError, match=message):
        recipe(**changes)


@pytest.mark.parametrize(
    ("cls", "fields", "message"),
    [
        (Schedule, {"steps": 0}, "steps must be 1"),
        (Schedule, {"steps": 1, "warmup_steps": -1}, "warmup_steps"),
        (Schedule, {"steps": 1, "accumulate": 0}, "accumulate"),
        (Schedule, {"steps": 1, "decay_fraction": 1.5}, "decay_fraction"),
        (LossSettings, {"router": -0.1}, "router"),
        (Heldout, {"data": None, "batches": 0}, "batches"),
    ],
)
def test_nonsense_in_a_part_is_refused(cls: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**fields)


def test_mistakes_name_file_and_key(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text("name='a'\noutput='b'\ntokenizer='c'\n[schedule]\nstep=3\n")
    with pytest.raises(
        ValueError, match=r"a\.toml: unknown key 'schedule.step'; did you mean 'schedule.steps'"
    ):
        Recipe.load(path)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_our_recipes_can_be_read(path: Path) -> None:
    found = Recipe.load(path, ["data.root=elsewhere", "schedule.steps=7"])
    assert found.data.root == "elsewhere" and found.schedule.steps == 7
    assert found.licences, "the model card must state the licences of the data"
    if found.model:
        ModelConfig.from_dict({k: v for k, v in found.model.items() if k != "mtp_layers"})
    assert found.heldout is None or all(part.heldout for part in found.heldout.data.parts)
    assert not any(part.heldout for part in found.data.parts)


def test_we_ship_recipes() -> None:
    assert {"tiny-base", "tiny-instruct", "tiny-thinking"} <= {path.stem for path in RECIPES}
