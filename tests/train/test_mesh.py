"""Training on several processes equals training in one, however weights and experts are shared out."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qnext.train import checkpoint, trainer
from qnext.train.checkpoint import latest
from qnext.train.mesh import Mesh, MeshSettings, whole
from qnext.train.metrics import MetricsFile
from qnext.train.recipe import LossSettings, Recipe, Schedule
from qnext.train.trainer import Trainer

from .processes import end, start_mesh
from .test_trainer import recipe  # noqa: F401

MESHES = [
    MeshSettings(replicate=2),
    MeshSettings(shard=2),
    MeshSettings(expert=2),
    MeshSettings(shard=4),
    MeshSettings(shard=2, expert=2),
    MeshSettings(replicate=2, expert=2),
    MeshSettings(replicate=2, shard=2),
]


@pytest.fixture
def toy(recipe: Recipe) -> Recipe:  # noqa: F811
    return replace(
        recipe,
        dtype="float32",
        recompute=True,
        loss=LossSettings(mtp_start=0.2, mtp_end=0.2, mtp_depth=2, z=1e-3),
        log_every=1,
        schedule=Schedule(3, warmup_steps=1, accumulate=4),
        heldout=None,
    )


def learn(recipe: Recipe) -> None:  # noqa: F811
    """Train, as one process of the mesh; the first step's gradients go to a file."""
    with Mesh.open(recipe.mesh, "cpu") as mesh:
        run = Trainer(recipe, mesh)
        step = run.optimizer.step

        def keep(lr_scale: float) -> float:
            named = run.model.named_parameters()
            found = {name: whole(p.grad).clone() for name, p in named if p.grad is not None}
            if mesh.leads and run.step == 0:
                torch.save(found, recipe.output / "gradients.pt")
            return step(lr_scale)

        run.optimizer.step = keep  # type: ignore[method-assign]
        run.run()


def on_mesh(recipe: Recipe) -> list[int | None]:  # noqa: F811
    """Train on the recipe's mesh; the processes' exit codes."""
    return [end(process, 120) for process in start_mesh(recipe.mesh.size, lambda rank: learn(recipe))]


def weights(output: Path) -> dict[str, Tensor]:
    path = latest(output)
    assert path is not None
    state = torch.load(path / checkpoint.STATE, weights_only=True)
    optimizer = state["optimizer"]
    return {**optimizer["momentum"], **{name: moments[0] for name, moments in optimizer["moments"].items()}}


def close(found: dict[str, Tensor], wanted: dict[str, Tensor], limit: float) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert (found[name] - tensor).norm() <= limit * tensor.norm(), name


@pytest.mark.parametrize("mesh", MESHES, ids=lambda mesh: f"{mesh.replicate}x{mesh.shard}x{mesh.expert}")
def test_equals_one_process(toy: Recipe, tmp_path: Path, mesh: MeshSettings) -> None:
    learn(toy)
    many = replace(toy, mesh=mesh, output=tmp_path / "many")
    assert on_mesh(many) == [0] * mesh.size
    gradients = [torch.load(each.output / "gradients.pt", weights_only=True) for each in (many, toy)]
    assert len(gradients[0]) > 40
    close(*gradients, limit=1e-5)
    # Newton-Schulz works in bfloat16, where the smallest difference may round another way
    close(weights(many.output), weights(toy.output), limit=2e-2)
    for found, wanted in zip(MetricsFile(many.output).read(), MetricsFile(toy.output).read(), strict=True):
        for name in ("tokens", "nll", "mtp_nll_2", "z", "router", "gradient_norm", "busiest_expert"):
            assert found[name] == pytest.approx(wanted[name], rel=1e-3), name
    assert (many.output / "model/README.md").exists()


def test_a_run_goes_on_on_another_mesh(toy: Recipe, tmp_path: Path) -> None:
    """A checkpoint knows nothing of the mesh that it was made on."""
    cut = replace(toy, output=tmp_path / "cut")
    for steps, mesh in ((1, MeshSettings(shard=2)), (2, MeshSettings(expert=4)), (3, MeshSettings())):
        part = replace(cut, mesh=mesh, schedule=replace(toy.schedule, steps=steps, decay_fraction=0.0))
        assert on_mesh(part) == [0] * mesh.size
    whole_run = replace(toy, output=tmp_path / "flat", schedule=replace(toy.schedule, decay_fraction=0.0))
    learn(whole_run)
    close(weights(cut.output), weights(whole_run.output), limit=2e-2)
    found, wanted = (MetricsFile(each.output).read() for each in (cut, whole_run))
    assert [line["nll"] for line in found] == pytest.approx([line["nll"] for line in wanted], rel=1e-3)


def test_a_stop_reaches_every_process(toy: Recipe, tmp_path: Path) -> None:
    """A signal that only one of them gets ends all after the same step, with a checkpoint."""
    long = replace(toy, mesh=MeshSettings(shard=2), schedule=replace(toy.schedule, steps=100_000))

    def work(rank: int) -> None:
        with Mesh.open(long.mesh, "cpu") as mesh:
            run = Trainer(long, mesh)
            take = run._train_step

            def step() -> float:
                if rank == 1 and run.step == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
                return take()

            run._train_step = step  # type: ignore[method-assign]
            assert run.run() is None and run.step == 2

    assert [end(process, 120) for process in start_mesh(2, work)] == [0, 0]
    assert checkpoint.latest(long.output) == long.output / "step-00000002"


def test_a_lost_process_is_told_and_the_checkpoint_is_whole(toy: Recipe, tmp_path: Path) -> None:
    long = replace(
        toy, mesh=MeshSettings(shard=2), schedule=replace(toy.schedule, steps=100_000), save_every_minutes=0.0
    )
    said = tmp_path / "said"

    def work(rank: int) -> None:
        try:
            with trainer.lost_processes(long), Mesh.open(long.mesh, "cpu") as mesh:
                run = Trainer(long, mesh)
                take = run._train_step

                def step() -> float:
                    if rank == 1 and run.step == 3:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return take()

                run._train_step = step  # type: ignore[method-assign]
                run.run()
        except ValueError as error:
            said.write_text(str(error))

    first, second = start_mesh(2, work)
    assert end(second, 60) == -signal.SIGKILL
    assert end(first, 60) == 0
    assert "another process of the mesh is lost" in said.read_text()
    assert "goes on from" in said.read_text() and "step-00000003" in said.read_text()
    assert Trainer(replace(long, mesh=MeshSettings())).step == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"mesh": MeshSettings(shard=3)},
            r"\[mesh\] has 3 processes, 1 started: torchrun --nproc-per-node 3",
        ),
        ({"schedule": Schedule(3, accumulate=3)}, "accumulate is 3: give a multiple of the 2 processes"),
    ],
)
def test_what_does_not_fit_is_refused(toy: Recipe, changes: dict[str, object], message: str) -> None:
    wrong = replace(toy, **changes)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        if wrong.mesh.size > 1:
            with Mesh.open(wrong.mesh, "cpu"):
                pass
        else:
            mesh = Mesh(MeshSettings(shard=2), None)
            Trainer(wrong, mesh)


def test_experts_must_be_divisible(toy: Recipe, tmp_path: Path) -> None:
    uneven = replace(toy, mesh=MeshSettings(expert=2), model={**toy.model, "num_experts": 3})
    said = tmp_path / "said"

    def work(rank: int) -> None:
        try:
            learn(uneven)
        except ValueError as error:
            said.write_text(str(error))

    assert [end(process, 60) for process in start_mesh(2, work)] == [0, 0]
    assert said.read_text() == "mesh.expert is 2: give a divisor of the 3 experts of a layer"


def test_a_mesh_is_legal() -> None:
    with pytest.raises(ValueError, match="shard must be 1 or more, not 0"):
        MeshSettings(shard=0)
