"""A run that is killed again and again, at random moments, ends in the weights of one that never was."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from os import kill
from pathlib import Path
from random import Random

import pytest
import torch

from qnext.train import checkpoint
from qnext.train.metrics import MetricsFile
from qnext.train.recipe import Recipe, Schedule
from qnext.train.trainer import Trainer

from .processes import end, start
from .test_trainer import recipe  # noqa: F401

KILLS = 12


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments_equals_uninterrupted(
    recipe: Recipe,  # noqa: F811
    tmp_path: Path,
    seed: int,
) -> None:
    """SIGKILL of real processes, that save after every step: while they load, learn, save or export."""
    recipe = replace(recipe, save_every_minutes=0.0, log_every=1, schedule=Schedule(20, warmup_steps=3))
    begun = time.monotonic()
    assert end(start(lambda: Trainer(recipe).run())) == 0
    longest = 0.3 * (time.monotonic() - begun)
    cut, random, killed, steps = replace(recipe, output=tmp_path / "cut"), Random(seed), 0, set()
    while killed < KILLS:
        process = start(lambda: Trainer(cut).run())
        code = end(process, random.uniform(0.0, longest))
        if code is None:
            kill(process, signal.SIGKILL)
            code = end(process)
            killed += code == -signal.SIGKILL
        assert code in (0, -signal.SIGKILL)
        latest = checkpoint.latest(cut.output)
        steps.add(latest.name if latest else "")
        if code == 0 and killed < KILLS:
            break  # it was quick: enough moments were tried all the same
    assert killed >= 2 and len(steps) >= 2, "the moments were badly chosen"
    assert end(start(lambda: Trainer(cut).run())) == 0

    for folder in ("step-00000020", "model"):
        for file in (recipe.output / folder).iterdir():
            assert (cut.output / folder / file.name).exists()
            if file.suffix == ".safetensors":
                assert file.read_bytes() == (cut.output / folder / file.name).read_bytes()
    states = [
        torch.load(each.output / "step-00000020" / checkpoint.STATE, weights_only=True)
        for each in (recipe, cut)
    ]
    for name, momentum in states[0]["optimizer"]["momentum"].items():
        assert torch.equal(momentum, states[1]["optimizer"]["momentum"][name]), name
    for name, moments in states[0]["optimizer"]["moments"].items():
        assert all(map(torch.equal, moments, states[1]["optimizer"]["moments"][name])), name
    assert states[0]["source"] == states[1]["source"] and torch.equal(states[0]["rng"], states[1]["rng"])
    timing = {"seconds", "tokens_per_second"}
    lines = [
        [{k: v for k, v in line.items() if k not in timing} for line in MetricsFile(each.output).read()]
        for each in (recipe, cut)
    ]
    assert [line for line in lines[0] if "nll" in line] == [line for line in lines[1] if "nll" in line]
