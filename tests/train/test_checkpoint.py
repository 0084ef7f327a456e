"""Training checkpoints: whole or absent, the last two kept, everything back as it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qnext.model.qwen3_next import Qwen3Next
from qnext.train import checkpoint
from qnext.train.optim import Optimizer, OptimSettings

from .toy import toy_model


def made(seed: int = 0, **changes: object) -> tuple[Qwen3Next, Optimizer]:
    model = toy_model(seed, **changes)
    return model, Optimizer(model, model.config, OptimSettings())


def step(model: Qwen3Next, optimizer: Optimizer) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step(1.0)


def test_round_trip_is_exact(tmp_path: Path) -> None:
    model, optimizer = made()
    step(model, optimizer)
    state = {"source": {"counts": [1, 2], "waiting": [([3], [0.5])]}, "tokens": 7}
    path = checkpoint.save(tmp_path, 12, model, optimizer, state, tmp_path)
    step(model, optimizer)  # draws from the random state after the save
    assert path == tmp_path / "step-00000012" == checkpoint.latest(tmp_path)

    other, other_optimizer = made(seed=5)
    assert checkpoint.load(path, other, other_optimizer) == {**state, "step": 12}
    step(other, other_optimizer)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, other.get_parameter(name)), name


def test_a_checkpoint_can_be_served(tmp_path: Path) -> None:
    model, optimizer = made()
    (tmp_path / "tokenizer.json").write_text("{}")
    path = checkpoint.save(tmp_path / "run", 1, model, optimizer, {}, tmp_path)
    served = Qwen3Next.from_pretrained(path)
    ids = torch.arange(9)
    assert torch.equal(served(ids), model(ids))
    assert (path / "tokenizer.json").read_text() == "{}"


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    model, optimizer = made()
    for number in (9, 10, 100, 100):
        checkpoint.save(tmp_path, number, model, optimizer, {}, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000100"]


def test_a_save_that_fails_leaves_the_older_one(tmp_path: Path) -> None:
    model, optimizer = made()
    path = checkpoint.save(tmp_path, 1, model, optimizer, {}, tmp_path)
    with pytest.raises((AttributeError, TypeError, RuntimeError)):  # a generator cannot be stored
        checkpoint.save(tmp_path, 2, model, optimizer, {"source": (i for i in ())}, tmp_path)
    assert checkpoint.latest(tmp_path) == path
    newer = checkpoint.save(tmp_path, 2, model, optimizer, {}, tmp_path)
    assert checkpoint.latest(tmp_path) == newer


def test_no_run_has_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "nothing") is None


def test_another_network_is_refused(tmp_path: Path) -> None:
    model, optimizer = made()
    path = checkpoint.save(tmp_path, 1, model, optimizer, {}, tmp_path)
    with pytest.raises(ValueError, match="mtp"):
        checkpoint.load(path, *made(mtp_layers=0))
