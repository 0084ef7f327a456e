"""The trainer: recipe in, exported checkpoint out. Pretraining, instruct, thinking and reinforcement runs are
all this loop, around a `Stage` each.

`train` is called by the command line; `Trainer` is for use from Python. Invariant: at every moment the output
folder holds a whole checkpoint to go on from, and going on gives the weights of a run that was never stopped.
On a mesh of processes all of them run this loop, in step; the first one alone writes files.
"""

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from qnext.model.weights import save_checkpoint
from qnext.text.tokenizer import Tokenizer

from . import checkpoint
from .card import write_card
from .mesh import Mesh, MeshSettings, Snapshot
from .metrics import Metrics, MetricsFile
from .network import build_model, check_device, check_length, freeze, quick_products, recompute_layers
from .optim import Optimizer
from .recipe import Recipe
from .reinforcement import Reinforcement
from .rollout import OpenActor
from .stage import Stage
from .supervised import Supervised

EXPORT = "model"


def train(
    recipe_path: str | Path,
    overrides: Sequence[str] = (),
    console: Console | None = None,
    actor: OpenActor | None = None,
) -> Path | None:
    """Train a recipe file to its end; returns the exported checkpoint, or None if a signal stopped the run.

    Run again, it goes on from the last checkpoint in the output folder. Under `torchrun` it is one process of
    the recipe's mesh. `actor` opens what answers the questions of a recipe with [rl]. Raises ValueError on a
    wrong recipe, on a loss that is not a number or far too high, and when another process of the mesh is
    lost.
    """
    recipe = Recipe.load(recipe_path, overrides)
    check_device(recipe)
    with lost_processes(recipe), Mesh.open(recipe.mesh, recipe.device) as mesh:
        trainer = Trainer(recipe, mesh, actor)
        if console is None or not mesh.leads:
            return trainer.run()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(recipe.name, total=recipe.schedule.steps, completed=trainer.step)

            def show(step: int, metrics: Metrics) -> None:
                came = f"{metrics['pass_rate']:.1%} right" if recipe.rl else f"loss {metrics['nll']:.3f}"
                words = f"{recipe.name}: {came}, {metrics['tokens_per_second']:.0f} tokens/s"
                progress.update(task, completed=step, description=words)

            return trainer.run(show)


class Trainer:
    """One run of a recipe. Made, it has already gone back to the last checkpoint in the output folder."""

    def __init__(self, recipe: Recipe, mesh: Mesh | None = None, actor: OpenActor | None = None) -> None:
        torch.set_num_threads(recipe.threads)
        torch.manual_seed(recipe.seed)
        self.recipe, self.mesh = recipe, mesh or Mesh(MeshSettings(), None)
        if recipe.schedule.accumulate % self.mesh.size:
            raise ValueError(
                f"schedule.accumulate is {recipe.schedule.accumulate}: give a multiple of the "
                f"{self.mesh.size} processes of the mesh, which share out the batches of a step"
            )
        self.model = build_model(recipe, Tokenizer.from_pretrained(recipe.tokenizer))
        check_length(recipe, self.model.config)
        freeze(self.model, recipe.learn)
        self.step = 0
        self.seconds = 0.0  # of training, over all sittings
        self.last: Metrics = {}
        self.heldout: float | None = None
        self.lowest = math.inf  # loss reported so far
        self.output = recipe.output
        self.metrics = MetricsFile(self.output, tensorboard=recipe.tensorboard and self.mesh.leads)
        self._start(actor)

    def run(self, progress: Callable[[int, Metrics], None] | None = None) -> Path | None:
        """Train to the last step and export; SIGINT and SIGTERM save and return None instead."""
        recipe, saved = self.recipe, time.monotonic()
        with (
            contextlib.closing(self.stage),
            _flushed_denormals(),
            quick_products(recipe),
            _stop_request() as stop,
        ):
            while self.step < recipe.schedule.steps:
                norm = self._train_step()
                ended = self.step == recipe.schedule.steps
                if ended or self.step % recipe.log_every == 0:
                    self._log(norm)
                    if progress:
                        progress(self.step, self.last)
                if recipe.heldout and (ended or self.step % recipe.eval_every == 0):
                    self.heldout = self.stage.evaluate()
                    self._write({"step": self.step, self.stage.heldout_metric: self.heldout})
                stopping = self.mesh.agree(stop.is_set())
                late = self.mesh.agree(time.monotonic() - saved > recipe.save_every_minutes * 60)
                if ended or stopping or late:
                    self._save()
                    saved = time.monotonic()
                if stopping and not ended:
                    return None
        return self.export()

    def _train_step(self) -> float:
        """One step of the stage; returns the gradient's norm. Raises ValueError when it is not finite."""
        started = time.monotonic()
        norm = self.stage.step(self.step)
        if not math.isfinite(norm):
            raise ValueError(
                f"the loss or its gradient is no finite number at step {self.step + 1}: {self._advice()}"
            )
        self.step += 1
        self.seconds += time.monotonic() - started
        return norm

    def export(self) -> Path:
        """Write the bf16 checkpoint with tokenizer files and model card; returns its folder."""
        path, share = self.output / EXPORT, self.recipe.blend
        weights = Snapshot.of(self.model, None if share else torch.bfloat16)
        if self.mesh.leads:
            if share:
                start = build_model(self.recipe, Tokenizer.from_pretrained(self.recipe.tokenizer))
                weights = weights.blended(start, share, torch.bfloat16)
            save_checkpoint(weights, path, source=self.recipe.tokenizer)
            write_card(path / "README.md", self.recipe, self.model, self.last, self.heldout)
        return path

    def _save(self) -> None:
        state = {
            **self.stage.state_dict(),
            "seconds": self.seconds,
            "last": self.last,
            "lowest": self.lowest,
            "heldout_loss": self.heldout,
            "optimizer": self.optimizer.state_dict(),
        }
        weights = Snapshot.of(self.model)
        if self.mesh.leads:
            checkpoint.save(self.output, self.step, weights, state, self.recipe.tokenizer)

    def _start(self, actor: OpenActor | None) -> None:
        """Go back to the last checkpoint, if there is one, and take this process's part of it."""
        path, state = checkpoint.latest(self.output), dict[str, Any]()
        if path:
            state = checkpoint.load(path, self.model)
            self.step, self.seconds = state["step"], state["seconds"]
            self.last, self.heldout = state["last"], state["heldout_loss"]
            self.lowest = state.get("lowest", math.inf)
        self.model.to(self.recipe.device)
        if self.recipe.recompute:
            recompute_layers(self.model)
        self.mesh.place(self.model)
        self.optimizer = Optimizer(self.model, self.model.config, self.recipe.optim, self.mesh)
        self.stage: Stage
        if self.recipe.rl:
            self.stage = Reinforcement(self.recipe, self.recipe.rl, self.model, self.optimizer, actor)
        else:
            self.stage = Supervised(self.recipe, self.model, self.optimizer, self.mesh)
        if state:
            self.optimizer.load_state_dict(state["optimizer"])
            self.stage.load_state_dict(state)
        self.output.mkdir(parents=True, exist_ok=True)
        if self.mesh.leads:
            self.metrics.cut(self.step)

    def _log(self, norm: float) -> None:
        self.last = {
            "step": self.step,
            "tokens": self.stage.tokens,
            **self.stage.report(),
            "gradient_norm": norm,
            "lr_scale": self.recipe.schedule.lr_scale(self.step - 1),
            "seconds": self.seconds,
        }
        self._write(self.last)
        if "nll" in self.last:
            self._check(self.last["nll"])

    def _check(self, nll: float) -> None:
        """Raises ValueError where a loss has risen too far above its lowest."""
        rise, allowed = nll - self.lowest, self.recipe.loss.most_rise
        if allowed and rise > allowed:
            raise ValueError(
                f"the run has diverged: at step {self.step} the loss is {rise:.2f} nats above its "
                f"lowest, and loss.most_rise is {allowed:g}: {self._advice()}"
            )
        self.lowest = min(self.lowest, nll)

    def _advice(self) -> str:
        kept = checkpoint.latest(self.output)
        place = kept or "the start, as no checkpoint was written yet"
        return f"lower optim.muon_lr and optim.adamw_lr, and go on from {place}"

    def _write(self, metrics: Metrics) -> None:
        if self.mesh.leads:
            self.metrics.add(metrics)


@contextlib.contextmanager
def lost_processes(recipe: Recipe) -> Iterator[None]:
    """Says in words that a process of the mesh was lost: the others only see that nobody answers."""
    try:
        yield
    except RuntimeError as error:
        if recipe.mesh.size == 1 or isinstance(error, torch.OutOfMemoryError):
            raise
        raise ValueError(
            f"another process of the mesh is lost ({str(error).splitlines()[0]}): its own message says why. "
            f"Start again, and the run goes on from {checkpoint.latest(recipe.output) or 'the start'}"
        ) from error


@contextlib.contextmanager
def _flushed_denormals() -> Iterator[None]:
    """Decays underflow, and arithmetic on denormals is many times slower; the setting is a thread's."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@contextlib.contextmanager
def _stop_request() -> Iterator[threading.Event]:
    """An event that the first SIGINT or SIGTERM sets; a second one acts as it did before."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals only ever reach the main thread
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, frame: object) -> None:
        stop.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
