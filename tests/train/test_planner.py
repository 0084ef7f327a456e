"""The planner: figures follow from costs and assumptions, every assumption can be set, mistakes are named."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from qnext.train.costs import Shape
from qnext.train.planner import DENSE, SPARSE, Assumptions, Plan, built_in, plan

from ..model.published import PUBLISHED

ROOT = Path(__file__).parents[2]
SMALL = Shape.dense(hidden=4, layers=1, heads=2, kv_heads=1, head_dim=2, inner=3, vocabulary=10)


def test_a_plan_by_hand() -> None:
    given = Assumptions(
        tokens=7200, sequence=3, gpus=2, expert_parallel=1, row_tokens=5, gpu_tflops=936e-12, mfu=0.5, price=3
    )
    made = Plan.of("small", SMALL, given)
    assert made.token_flops == 936 and made.flops == 936 * 7200
    assert made.tokens_per_second == pytest.approx(0.5)  # 936 FLOP/s at half, 936 a token
    assert made.gpu_hours == pytest.approx(4.0)
    assert made.memory == {"state": 2544 / 2, "gathered weights": 384, "activations": 500}


def test_the_published_runs() -> None:
    text = "\n".join(f"{label}: {line}" for label, line in plan(SPARSE))
    assert "81.32 G in all, 3.564 G a token" in text and "15 T tokens" in text and "published 9.3%" in text
    hours = {
        name: Plan.of(name, built_in(name), Assumptions(tokens=t))
        for name, t in ((SPARSE, 15e12), (DENSE, 36e12))
    }
    # 6 FLOPs a parameter and token alone, at the usual shares of 989 TFLOP/s
    assert hours[DENSE].gpu_hours == pytest.approx(6 * 31.98e9 * 36e12 / (0.4 * 989e12) / 3600, rel=0.08)
    assert hours[SPARSE].gpu_hours == pytest.approx(6 * 3.94e9 * 15e12 / (0.25 * 989e12) / 3600, rel=0.08)
    assert built_in(DENSE).total == pytest.approx(32.8e9, rel=2e-3)
    assert plan(DENSE)[-3:] == plan(SPARSE)[-3:], "both show the same comparison"


def test_one_mfu_for_both_gives_the_ratio_of_flops() -> None:
    shown = dict(enumerate(line for _, line in plan(SPARSE, ["mfu=0.4"])[-3:]))[1]
    hours, flops = shown.split("%")[0], shown.rsplit(" ", 4)[-4].rstrip("%")
    assert hours == flops == "5.2"


def test_every_assumption_changes_the_plan() -> None:
    other = {
        "tokens": "1e12", "sequence": "8192", "gpus": "2048", "expert_parallel": "64", "row_tokens": "16384",
        "gpu_tflops": "2000", "gpu_gib": "141", "mfu": "0.5", "price": "4", "mtp_depth": "0",
        "checkpointing": "false",
    }  # fmt: skip
    assert set(other) == {field.name for field in fields(Assumptions)}
    usual = plan(SPARSE)
    for key, value in other.items():
        assert plan(SPARSE, [f"{key}={value}"])[:-3] != usual[:-3], key


def test_too_little_memory_is_said() -> None:
    lines = dict(plan(SPARSE, ["gpus=8"]))
    assert "does NOT fit" in lines["memory"] and "fits" not in lines["memory"].replace("NOT fit", "")


def test_a_checkpoint_and_a_bare_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    lines = dict(plan(str(tmp_path), ["tokens=1e9"]))
    assert (
        "81.32 G in all" in lines["parameters"]
    )  # a bare config.json does not say that the MTP head is missing
    assert dict(plan(str(ROOT / "qnext/models/tiny-base"), ["tokens=1e9"]))["parameters"].startswith(
        "10.68 M"
    )
    with pytest.raises(ValueError, match=r"not known: give tokens=15e12"):
        plan(str(tmp_path))


@pytest.mark.parametrize("name", ["tiny-base", "tiny-thinking"])
def test_a_recipe(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    lines = plan(f"recipes/{name}.toml", ["schedule.steps=100", "gpus=2"])
    assert dict(lines)["parameters"].startswith("10.68 M in all")
    assert ("assumed", "6.554 M tokens in rows of 1536, 4096 at once a GPU") in lines
    assert "on 2" in dict(lines)["GPU hours"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tokns=1"], "unknown key 'tokns'; did you mean 'tokens'"),
        (["mfu=40"], "mfu is a share of the peak"),
        (["gpus=0"], "gpus must be 1 or more"),
        (["gpus=12"], "multiple of expert_parallel"),
        (["gpu_gib=0"], "gpu_gib must be more than 0"),
        (["price=-1"], "price must be 0 or more"),
        (["gpus=many"], "'gpus' must be a whole number"),
    ],
)
def test_mistakes_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(SPARSE, overrides)


def test_a_recipe_still_knows_its_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match=r"unknown key 'schedule.step'"):
        plan("recipes/tiny-base.toml", ["schedule.step=100"])
    with pytest.raises(ValueError, match="no-such"):
        plan("no-such")
