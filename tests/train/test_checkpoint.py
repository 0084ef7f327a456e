"""Training checkpoints: whole or absent, the last two kept, everything back as it was."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from qnext.model.qwen3_next import Qwen3Next
from qnext.train import checkpoint
from qnext.train.optim import Optimizer, OptimSettings

from .toy import toy_model


def made(seed: int = 0, **changes: object) -> tuple[Qwen3Next, Optimizer]:
    model = toy_model(seed, **changes)
    return model, Optimizer(model, model.config, OptimSettings())


def save(
    output: Path, number: int, model: Qwen3Next, optimizer: Optimizer, state: dict[str, Any], companions: Path
) -> Path:
    state = {**state, "optimizer": optimizer.state_dict()}
    return checkpoint.save(output, number, model, state, companions)


def step(model: Qwen3Next, optimizer: Optimizer) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step(1.0)


def test_round_trip_is_exact(tmp_path: Path) -> None:
    model, optimizer = made()
    step(model, optimizer)
    state = {"source": {"counts": [1, 2], "waiting": [([3], [0.5])]}, "tokens": 7}
    path = save(tmp_path, 12, model, optimizer, state, tmp_path)
    step(model, optimizer)  # draws from the random state after the save
    assert path == tmp_path / "step-00000012" == checkpoint.latest(tmp_path)

    other, other_optimizer = made(seed=5)
    loaded = checkpoint.load(path, other)
    other_optimizer.load_state_dict(loaded.pop("optimizer"))
    assert loaded == {**state, "step": 12}
    step(other, other_optimizer)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, other.get_parameter(name)), name


def test_a_checkpoint_can_be_served(tmp_path: Path) -> None:
    model, optimizer = made()
    (tmp_path / "tokenizer.json").write_text("{}")
    path = save(tmp_path / "run", 1, model, optimizer, {}, tmp_path)
    served = Qwen3Next.from_pretrained(path)
    ids = torch.arange(9)
    assert torch.equal(served(ids), model(ids))
    assert (path / "tokenizer.json").read_text() == "{}"


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    model, optimizer = made()
    for number in (9, 10, 100, 100):
        save(tmp_path, number, model, optimizer, {}, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000100"]


def test_a_save_that_fails_leaves_the_older_one(tmp_path: Path) -> None:
    model, optimizer = made()
    path = save(tmp_path, 1, model, optimizer, {}, tmp_path)
    with pytest.raises((AttributeError, TypeError)):  # a generator cannot be stored
        save(tmp_path, 2, model, optimizer, {"source": (i for i in ())}, tmp_path)
    assert checkpoint.latest(tmp_path) == path
    newer = save(tmp_path, 2, model, optimizer, {}, tmp_path)
    assert checkpoint.latest(tmp_path) == newer


def test_no_run_has_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "nothing") is None


def test_another_network_is_refused(tmp_path: Path) -> None:
    model, optimizer = made()
    path = save(tmp_path, 1, model, optimizer, {}, tmp_path)
    with pytest.raises(ValueError, match=r"step-00000001 does not fit this recipe: .*mtp.*another output"):
        checkpoint.load(path, made(mtp_layers=0)[0])
    with pytest.raises(ValueError, match=r"does not fit this recipe: .* has shape .*moe_intermediate_size"):
        checkpoint.load(path, made(moe_intermediate_size=24)[0])


@contextmanager
def little_room(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes: a disk that fills up."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999, 1.001, 1.3])  # of the weights' file; the state is larger
def test_a_full_disk_leaves_the_older_one(share: float, tmp_path: Path) -> None:
    model, optimizer = made()
    path = save(tmp_path, 1, model, optimizer, {}, tmp_path)
    before = {file: file.read_bytes() for file in path.iterdir()}
    weights, state = ((path / name).stat().st_size for name in ("model.safetensors", "training.pt"))
    assert state > 1.3 * weights
    message = r"step-00000002: the checkpoint could not be written .*make room"
    with pytest.raises(ValueError, match=message), little_room(int(share * weights)):
        save(tmp_path, 2, model, optimizer, {}, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["step-00000001"]
    assert {file: file.read_bytes() for file in path.iterdir()} == before
    assert checkpoint.latest(tmp_path) == path


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    model, optimizer = made()
    path = save(tmp_path, 1, model, optimizer, {}, tmp_path)
    (path / "training.pt").write_bytes((path / "training.pt").read_bytes()[:-4000])
    with pytest.raises(ValueError, match=r"training\.pt is damaged .*: remove .*step-00000001"):
        checkpoint.load(path, model)
