"""Recipes: the schedules they describe, the mistakes they refuse, and that those we ship can be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from qnext.model.config import ModelConfig
from qnext.train.growth import Growth
from qnext.train.mesh import MeshSettings
from qnext.train.mixture import DataSpec, Part
from qnext.train.recipe import Heldout, LossSettings, Recipe, RLSettings, Schedule

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
        ({"grow": Growth((0,))}, r"\[grow\] makes a checkpoint larger: give init"),
        ({"blend": 0.5}, "blend is 0.5: give 0 to 1, and init"),
        ({"blend": 1.0}, "blend is 1.0"),
        ({"blend": 0.5, "init": Path("base"), "model": {}, "grow": Growth((0,))}, "is random in part"),
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
        (RLSettings, {"group": 1}, "group is 1: give 2 or more, an answer is judged against its group"),
        (RLSettings, {"prompts": 0}, "prompts must be 1"),
        (RLSettings, {"updates": 0}, "updates must be 1"),
        (RLSettings, {"max_tokens": 0}, "max_tokens must be 1"),
        (RLSettings, {"at_once": 0}, "at_once must be 1"),
        (RLSettings, {"temperature": 0.0}, "temperature is 0.0: give more than 0, answers must differ"),
        (RLSettings, {"temperature": float("inf")}, "temperature is inf"),
        (RLSettings, {"format": -0.1}, "format must be 0"),
        (RLSettings, {"kl": -1.0}, "kl must be 0"),
        (RLSettings, {"clip_low": -0.1}, "clip_low must be 0"),
        (RLSettings, {"clip_low": 1.5}, "clip_low is 1.5: give 0 to 1"),
        (RLSettings, {"clip_high": -0.1}, "clip_high must be 0"),
    ],
)
def test_nonsense_in_a_part_is_refused(cls: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**fields)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"init": None, "model": {"hidden_size": 24}},
            r"\[rl\] goes on from a model that answers questions: give init",
        ),
        (
            {"data": DataSpec((Part("stories", 1.0, path="x"),))},
            r"data\.parts: \[rl\] asks what a checker can judge",
        ),
        (
            {"heldout": Heldout(DataSpec((Part("conversations", 1.0, path="x"),)))},
            r"heldout\.data\.parts: \[rl\] asks",
        ),
        (
            {"data": DataSpec((Part("chat", 1.0),), max_length=256)},
            r"rl\.max_tokens is 256, data\.max_length 256",
        ),
        (
            {"data": DataSpec((Part("chat", 1.0),), workers=2)},
            r"data\.workers: \[rl\] makes its few questions itself",
        ),
        ({"loss": LossSettings(z=1e-3)}, r"\[loss\] is for texts to predict: leave it out"),
        ({"mesh": MeshSettings(shard=2)}, r"\[rl\] learns in one process"),
        ({"schedule": Schedule(3, accumulate=2)}, r"leave out mesh and schedule\.accumulate"),
    ],
)
def test_reinforcement_refuses_what_it_would_not_obey(changes: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {"init": Path("start"), "model": {}, "rl": RLSettings()}
    recipe(**fields)
    with pytest.raises(ValueError, match=message):
        recipe(**{**fields, **changes})


def test_clips_are_those_of_the_algorithm_unless_given() -> None:
    assert RLSettings().clip == (3e-4, 4e-4) and RLSettings(algorithm="grpo").clip == (0.2, 0.2)
    assert RLSettings(clip_low=0.0, clip_high=0.5).clip == (0.0, 0.5)


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


def test_the_lessons_of_each_embedded_model_are_there() -> None:
    recipes = {path.stem: Recipe.load(path) for path in RECIPES}
    made = {str(recipe.output / "model") for recipe in recipes.values()}
    assert {"tiny-base", "tiny-thinking-review", "tiny-instruct-review", "tiny-rl"} <= recipes.keys()
    for recipe in recipes.values():  # each goes on from what is embedded, or from what another makes
        assert recipe.init is None or str(recipe.init) in made or recipe.init.parent == Path("qnext/models")
