"""The reinforcement stage: it makes what is rewarded likelier, says how, and goes on where it was stopped."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from qnext.actor import EngineActor
from qnext.model.qwen3_next import Qwen3Next
from qnext.model.weights import save_checkpoint
from qnext.models import locate
from qnext.train.mixture import DataSpec, Part
from qnext.train.objective import divergence
from qnext.train.optim import OptimSettings
from qnext.train.policy import answer_log_probs
from qnext.train.questions import Question, Questions, Verdict
from qnext.train.recipe import Heldout, Recipe, RLSettings, Schedule
from qnext.train.reinforcement import Reinforcement
from qnext.train.rollout import Ask, Rollout, Row
from qnext.train.trainer import Trainer

from .test_trainer import metrics, stop_after
from .toy import toy_model

SUMS = DataSpec((Part("chat", 1.0, family="sums"),), max_length=80, tokens_per_batch=400)
KEPT = DataSpec((Part("chat", 1.0, family="sums", heldout=True),), max_length=80, tokens_per_batch=400)
TIMING = {"seconds", "tokens_per_second", "learned_tokens_per_second"}


START = toy_model(vocab_size=4096)
LIKED = (START.embed_tokens.weight[:, 0] > 0).tolist()


def judge(self: Questions, question: Question, rollout: Rollout) -> Verdict:
    """A reward that a network without any words can learn: the first token lies on one side."""
    return Verdict(formed=True, right=LIKED[rollout.answer[0]])


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setattr(Questions, "judge", judge)
    start, words = tmp_path / "start", locate("tiny-thinking")
    save_checkpoint(START, start, source=words)
    return Recipe(
        name="toy",
        output=tmp_path / "run",
        tokenizer=words,
        init=start,
        schedule=Schedule(3, warmup_steps=1),
        data=SUMS,
        rl=RLSettings(prompts=3, group=4, max_tokens=3, at_once=8),
        log_every=1,
        dtype="float32",
    )


def trainer(recipe: Recipe, **rl: Any) -> Trainer:
    assert recipe.rl is not None
    return Trainer(replace(recipe, rl=replace(recipe.rl, **rl)), actor=EngineActor.open)


def test_it_makes_likelier_what_is_rewarded(recipe: Recipe) -> None:
    recipe = replace(
        recipe,
        schedule=Schedule(12, warmup_steps=0, decay_fraction=0.0),
        optim=OptimSettings(muon_lr=0.02, adamw_lr=0.01),
        heldout=Heldout(KEPT, batches=8),
        eval_every=12,
    )
    run = trainer(recipe, prompts=6, group=6, max_tokens=1, at_once=64)
    before = run.stage.evaluate()
    path = run.run()
    *steps, last = metrics(recipe.output)
    assert last == {"step": 12, "heldout_pass_rate": pytest.approx(run.heldout)}
    assert run.heldout is not None and run.heldout > before + 0.2
    assert steps[-1]["pass_rate"] > steps[0]["pass_rate"] + 0.2
    assert path is not None and "reinforcement by GSPO, 6 answers" in (path / "README.md").read_text()
    assert "held-out questions" in (path / "README.md").read_text()


@pytest.mark.parametrize("algorithm", ["gspo", "grpo"])
def test_every_line_says_how_it_went(recipe: Recipe, algorithm: Any) -> None:
    """The first update of a step has ratios of 1; with a second one they are no more, and some are
    clipped."""
    trainer(recipe, algorithm=algorithm).run()
    for line in metrics(recipe.output):
        assert line["ratio_most_off"] <= 1e-4 and line["engine_gap_most"] <= 1e-4 and line["clip_share"] == 0
        assert 0 < line["pass_rate"] < 1 and line["formed"] == 1 and 1 <= line["length"] <= 3
        assert line["reward"] == pytest.approx(line["pass_rate"] + 0.1, rel=1e-4)
        assert line["entropy"] > 1 and 0 <= line["without_spread"] < 1 and line["gradient_norm"] > 0
    second = replace(recipe, output=recipe.output.with_name("second"))
    run = trainer(second, algorithm=algorithm, updates=2, clip_low=1e-3, clip_high=1e-3)
    run.run()
    lines = metrics(second.output)
    assert run.optimizer.steps == 6
    assert all(line["ratio_most_off"] > 1e-3 and line["engine_gap_most"] <= 1e-4 for line in lines)
    assert 0 < sum(line["clip_share"] for line in lines) < 3


def test_resume_equals_uninterrupted_bit_for_bit(recipe: Recipe, tmp_path: Path) -> None:
    whole = trainer(recipe, updates=2, kl=0.1)
    whole.run()
    cut = replace(recipe, output=tmp_path / "cut")
    for steps in (1, 2):
        run = trainer(cut, updates=2, kl=0.1)
        stop_after(run, steps)
        assert run.run() is None and run.step == steps
    last = trainer(cut, updates=2, kl=0.1)
    assert last.step == 2
    last.run()
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, last.model.get_parameter(name)), name
    lines = [
        [{k: v for k, v in line.items() if k not in TIMING} for line in metrics(each.output)]
        for each in (recipe, cut)
    ]
    assert lines[0] == lines[1] and len(lines[0]) == 3


def test_groups_of_one_mind_teach_nothing(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Questions, "judge", lambda *_: Verdict(formed=True, right=False))
    run = trainer(recipe)
    before = {name: weight.clone() for name, weight in run.model.named_parameters()}
    run.run()
    assert all(torch.equal(weight, before[name]) for name, weight in run.model.named_parameters())
    for line in metrics(recipe.output):
        assert line["without_spread"] == 1 and line["gradient_norm"] == 0 and "ratio" not in line
    assert run.optimizer.steps == 0 and run.stage.tokens == 0


def test_the_distance_from_the_start_is_held(recipe: Recipe) -> None:
    """Where answers earn nothing, the loss is the weighted distance, and learning closes it."""
    stage = trainer(recipe, kl=2.0).stage
    assert isinstance(stage, Reinforcement)
    with contextlib.closing(stage):
        drawn, _ = stage._answers([stage.questions.next() for _ in range(2)], 4)
        assert stage._loss(drawn, torch.zeros(8), fresh=True).item() == pytest.approx(0, abs=1e-5)
        with torch.no_grad():
            stage.model.norm.weight.add_(0.3)
            row = Row.of(drawn, "cpu")
            new, start = (answer_log_probs(each, row, 1.0)[0] for each in (stage.model, START))
            wanted = 2 * float(divergence(new, start, row.answers).sum())
        losses = []
        for _ in range(3):
            loss = stage._loss(drawn, torch.zeros(8), fresh=True)
            losses.append(loss.item())
            loss.backward()
            stage.optimizer.step(0.1)
    assert losses[0] == pytest.approx(wanted, rel=1e-4) and wanted > 0.1
    assert losses[2] < losses[1] < losses[0]


class Scripted:
    """An actor that says the same to everybody: what is liked, or not, in turn."""

    def __init__(self, _: Recipe) -> None:
        self.asked: list[Ask] = []
        self.refreshed, self.closed = 0, False

    def refresh(self, model: Qwen3Next) -> None:
        self.refreshed += 1

    def answer(self, asks: Sequence[Ask]) -> list[Rollout]:
        self.asked += asks
        return [
            Rollout(ask.prompt, (LIKED.index(bool(place % 2)), 7), torch.tensor([-8.0, -8.0]), ended=True)
            for place, ask in enumerate(asks)
        ]

    def close(self) -> None:
        self.closed = True


def test_any_actor_will_do_and_is_asked_in_groups(recipe: Recipe) -> None:
    run = Trainer(replace(recipe, schedule=Schedule(2, warmup_steps=0)), actor=Scripted)
    assert isinstance(run.stage, Reinforcement) and isinstance(run.stage.actor, Scripted)
    actor = run.stage.actor
    run.run()
    assert actor.closed and actor.refreshed == 2 and len(actor.asked) == 2 * 3 * 4
    groups = [actor.asked[i : i + 4] for i in range(0, 24, 4)]
    assert all(len({ask.prompt for ask in group}) == 1 for group in groups)
    assert len({group[0].prompt for group in groups}) == 6 and len({ask.seed for ask in actor.asked}) == 24
    assert {(ask.temperature, ask.max_tokens, ask.routed) for ask in actor.asked} == {(1.0, 3, True)}
    assert metrics(recipe.output)[0]["pass_rate"] == 0.5
    with pytest.raises(ValueError, match="needs an actor"):
        Trainer(recipe)


def test_a_question_without_a_checker_stops_before_anything_is_written(recipe: Recipe) -> None:
    manners = replace(recipe, data=replace(SUMS, parts=(Part("chat", 1.0, family="manners"),)))
    with pytest.raises(ValueError, match="nothing of the family 'manners' can be checked"):
        Trainer(manners, actor=EngineActor.open)
    base = replace(recipe, tokenizer=locate("tiny-base"))
    with pytest.raises(ValueError, match="no chat template, so it answers no questions"):
        Trainer(base, actor=EngineActor.open)
    assert not recipe.output.exists()


def test_the_card_and_the_metrics_are_json(recipe: Recipe) -> None:
    run = trainer(replace(recipe, schedule=Schedule(1)))
    path = run.run()
    assert path is not None and json.loads((path / "config.json").read_text())["vocab_size"] == 4096
    assert "last rate of right answers" in (path / "README.md").read_text()
