"""Training on CUDA: the CPU's losses and gradients, runs that are stopped and go on, and bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qnext.model.qwen3_next import Qwen3Next
from qnext.train import loss, supervised
from qnext.train.batch import Batch
from qnext.train.mixture import DataSpec, Part
from qnext.train.network import recompute_layers
from qnext.train.recipe import Heldout, LossSettings, Recipe, Schedule
from qnext.train.trainer import Trainer

from ..train.test_trainer import metrics, stop_after, write_tokenizer
from ..train.toy import TABLE, ToySource, toy_batch, toy_model

DEPTH = 3
DOCUMENTS = (9, 1, 2, 140, 64, 65, 3)
SHAPES: dict[str, dict[str, Any]] = {
    "toy": {},
    "own output matrix, normed input": {"tie_word_embeddings": False, "mtp_normed_input": True},
    "four layers": {"num_hidden_layers": 4, "full_attention_interval": 4, "linear_num_value_heads": 4},
}


def learned(model: Qwen3Next, batch: Batch, **more: Any) -> tuple[float, loss.Tally, dict[str, Tensor]]:
    """The loss, what it was made of, and the gradients."""
    settings = {"denominator": 50.0, "mtp_weight": 0.3, "router_weight": 0.1, "z_weight": 1e-3}
    found, tally = loss.total(model, batch, **settings, mtp_depth=DEPTH, **more)
    found.backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return float(found.detach()), tally, {name: each.cpu() for name, each in gradients.items()}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_gradients_are_those_of_the_cpu(shape: str, recompute: bool, device: str) -> None:
    model, batch = toy_model(**SHAPES[shape]), toy_batch(DOCUMENTS)
    there = deepcopy(model).to(device)
    if recompute:
        recompute_layers(there)
    moved = replace(batch, ids=batch.ids.to(device), weights=batch.weights.to(device))
    wanted, tally, gradients = learned(model, batch)
    found, tally_there, gradients_there = learned(there, moved)
    assert found == pytest.approx(wanted, rel=1e-5)
    assert tally_there.means() == pytest.approx(tally.means(), rel=1e-4)
    assert gradients_there.keys() == gradients.keys() == dict(model.named_parameters()).keys()
    for name, gradient in gradients.items():
        limit = 5e-3 if name.endswith(("A_log", "dt_bias")) else 1e-4
        assert (gradients_there[name] - gradient).norm() <= limit * gradient.norm(), name


@pytest.fixture
def recipe(tmp_path: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A toy recipe with all that a loss can have, two rows a step."""
    monkeypatch.setattr(supervised, "open_source", lambda spec, folder, seed: ToySource(seed))
    data = DataSpec((Part("chat", 1.0),))
    return Recipe(
        name="toy",
        output=tmp_path / "run",
        tokenizer=write_tokenizer(tmp_path / "tokenizer"),
        schedule=Schedule(6, warmup_steps=1, accumulate=2),
        data=data,
        model=dict(TABLE),
        loss=LossSettings(z=1e-4, mtp_depth=DEPTH),
        log_every=1,
        eval_every=3,
        heldout=Heldout(data, batches=2),
        device=device,
        dtype="float32",
    )


def told(recipe: Recipe) -> list[dict[str, float]]:
    """The losses of a run, line by line."""
    losses = ("nll", "mtp_nll", f"mtp_nll_{DEPTH}", "router", "heldout_nll", "gradient_norm")
    return [{name: line[name] for name in losses if name in line} for line in metrics(recipe.output)]


def test_a_run_goes_as_on_the_cpu(recipe: Recipe) -> None:
    """The first step's losses are the same; later ones drift, since Muon's products are in bfloat16."""
    Trainer(recipe).run()
    there = replace(recipe, device="cpu", output=recipe.output.with_name("cpu"))
    Trainer(there).run()
    first, *_, last = zip(told(recipe), told(there), strict=True)
    assert first[0] == pytest.approx(first[1], rel=1e-4)
    assert last[0] == pytest.approx(last[1], rel=0.03) and last[0].keys() == {"heldout_nll"}


@pytest.mark.parametrize("recompute", [False, True])
def test_bfloat16_learns_alike(recipe: Recipe, recompute: bool) -> None:
    half = replace(recipe, dtype="bfloat16", recompute=recompute, output=recipe.output.with_name("half"))
    path = Trainer(half).run()
    Trainer(recipe).run()
    for found, wanted in zip(told(half), told(recipe), strict=True):
        found.pop("gradient_norm", None), wanted.pop("gradient_norm", None)
        assert found == pytest.approx(wanted, rel=0.03)
    assert path is not None
    assert Qwen3Next.from_pretrained(path, device=recipe.device).dtype == torch.bfloat16


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Sums in one order, as far as the device can; fresh memory holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.filterwarnings("ignore:.*deterministic")
def test_a_stopped_run_goes_on_as_if_it_had_not_been(recipe: Recipe, tmp_path: Path) -> None:
    """To the last bit, where the same run twice is the same to the last bit."""
    whole, again = (Trainer(replace(recipe, output=tmp_path / name)) for name in ("whole", "again"))
    whole.run(), again.run()
    for steps in (2, 5):
        run = Trainer(recipe)
        stop_after(run, steps)
        assert run.run() is None and run.step == steps
    last = Trainer(recipe)
    assert last.step == 5 and {m.device.type for m, _ in last.optimizer._moments.values()} == {recipe.device}
    last.run()
    weights = [{name: each.detach() for name, each in run.model.named_parameters()} for run in (whole, last)]
    steady = all(torch.equal(weight, again.model.get_parameter(name)) for name, weight in weights[0].items())
    for name, weight in weights[0].items():
        room = 0.0 if steady else 1e-3
        torch.testing.assert_close(weights[1][name], weight, rtol=room, atol=room, msg=name)
