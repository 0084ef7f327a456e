"""The trainer: recipe in, exported checkpoint out. Pretraining, instruct and thinking runs are all this loop.

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
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from qnext.model.weights import save_checkpoint
from qnext.text.tokenizer import Tokenizer

from . import checkpoint, loss
from .batch import Batch
from .card import write_card
from .mesh import Mesh, MeshSettings, Snapshot
from .metrics import Metrics, MetricsFile
from .mixture import open_source
from .network import build_model, check_length, recompute_layers
from .optim import Optimizer
from .recipe import Recipe

EXPORT = "model"


def train(
    recipe_path: str | Path, overrides: Sequence[str] = (), console: Console | None = None
) -> Path | None:
    """Train a recipe file to its end; returns the exported checkpoint, or None if a signal stopped the run.

    Run again, it goes on from the last checkpoint in the output folder. Under `torchrun` it is one process of
    the recipe's mesh. Raises ValueError on a wrong recipe, on a loss that is not a number or far too high,
    and when another process of the mesh is lost.
    """
    recipe = Recipe.load(recipe_path, overrides)
    with lost_processes(recipe), Mesh.open(recipe.mesh, recipe.device) as mesh:
        trainer = Trainer(recipe, mesh)
        if console is None or not mesh.leads:
            return trainer.run()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(recipe.name, total=recipe.schedule.steps, completed=trainer.step)

            def show(step: int, metrics: Metrics) -> None:
                words = f"loss {metrics['nll']:.3f}, {metrics['tokens_per_second']:.0f} tokens/s"
                progress.update(task, completed=step, description=f"{recipe.name}: {words}")

            return trainer.run(show)


class Trainer:
    """One run of a recipe. Made, it has already gone back to the last checkpoint in the output folder."""

    def __init__(self, recipe: Recipe, mesh: Mesh | None = None) -> None:
        torch.set_num_threads(recipe.threads)
        torch.set_flush_denormal(True)  # decays underflow; arithmetic on denormals is many times slower
        torch.manual_seed(recipe.seed)
        self.recipe, self.mesh = recipe, mesh or Mesh(MeshSettings(), None)
        if recipe.schedule.accumulate % self.mesh.size:
            raise ValueError(
                f"schedule.accumulate is {recipe.schedule.accumulate}: give a multiple of the "
                f"{self.mesh.size} processes of the mesh, which share out the batches of a step"
            )
        tokenizer = Tokenizer.from_pretrained(recipe.tokenizer)
        self.model = build_model(recipe, tokenizer)
        check_length(recipe, self.model.config)
        self.source = open_source(recipe.data, recipe.tokenizer, recipe.seed)
        self.heldout: list[Batch] = []
        if recipe.heldout:
            source = open_source(recipe.heldout.data, recipe.tokenizer, recipe.seed)
            self.heldout = [self._on_device(source.next()) for _ in range(recipe.heldout.batches)]
        self.step = 0
        self.tokens = 0
        self.seconds = 0.0  # of training, over all sittings
        self.last: Metrics = {}
        self.heldout_loss: float | None = None
        self.lowest = math.inf  # loss reported so far
        self.output = recipe.output
        self.output.mkdir(parents=True, exist_ok=True)
        self.metrics = MetricsFile(self.output, tensorboard=recipe.tensorboard and self.mesh.leads)
        self._start()

    def run(self, progress: Callable[[int, Metrics], None] | None = None) -> Path | None:
        """Train to the last step and export; SIGINT and SIGTERM save and return None instead."""
        recipe, tally, saved = self.recipe, loss.Tally(), time.monotonic()
        with _stop_request() as stop:
            while self.step < recipe.schedule.steps:
                norm = self._train_step(tally)
                ended = self.step == recipe.schedule.steps
                if ended or self.step % recipe.log_every == 0:
                    self._log(tally, norm)
                    tally = loss.Tally()
                    if progress:
                        progress(self.step, self.last)
                if self.heldout and (ended or self.step % recipe.eval_every == 0):
                    self.heldout_loss = self.evaluate()
                    self._write({"step": self.step, "heldout_nll": self.heldout_loss})
                stopping = self.mesh.agree(stop.is_set())
                late = self.mesh.agree(time.monotonic() - saved > recipe.save_every_minutes * 60)
                if ended or stopping or late:
                    self._save()
                    saved = time.monotonic()
                if stopping and not ended:
                    return None
        return self.export()

    def _train_step(self, tally: loss.Tally) -> float:
        """One optimiser step; returns the gradient's norm. Raises ValueError when it is not finite."""
        started, schedule = time.monotonic(), self.recipe.schedule
        # every process reads all rows and learns from its own: so the data's place is the same on any mesh
        batches = [self._on_device(self.source.next()) for _ in range(schedule.accumulate)]
        denominator = max(sum(float(batch.weights.sum()) for batch in batches), 1e-9)
        mine = batches[self.mesh.rank :: self.mesh.size]
        total = partial(
            loss.total,
            self.model,
            denominator=denominator,
            mtp_weight=self.recipe.loss.mtp(self.step / schedule.steps),
            router_weight=self.recipe.loss.router,
            z_weight=self.recipe.loss.z,
            mtp_depth=self.recipe.loss.mtp_depth,
        )
        share = loss.Share(sum(len(batch.ids) for batch in batches), self._counts(mine, total))
        for batch in mine:
            with self._autocast():
                part, seen = total(batch, share=share)
            part.backward()
            tally.add(seen)
        self.tokens += share.tokens
        norm = self.optimizer.step(schedule.lr_scale(self.step))
        if not math.isfinite(norm) or not math.isfinite(tally.nll):
            raise ValueError(
                f"the loss or its gradient is no finite number at step {self.step + 1}: {self._advice()}"
            )
        self.step += 1
        elapsed = time.monotonic() - started
        tally.steps += 1
        tally.seconds += elapsed
        self.seconds += elapsed
        return norm

    def _counts(
        self, batches: list[Batch], total: Callable[..., tuple[Tensor, loss.Tally]]
    ) -> Callable[[Tensor], Tensor]:
        """What turns a row's choices of experts into those of the whole step.

        Where a process has several rows they are known only after a forward of each: it is done twice.
        """
        if len(batches) == 1 or not self.recipe.loss.router or not self.model.config.num_experts:
            return self.mesh.sum
        seen = loss.Tally()
        with torch.no_grad(), self._autocast():
            for batch in batches:
                seen.add(total(batch)[1])
        counts = self.mesh.sum(seen.loads)
        return lambda _: counts

    def evaluate(self) -> float:
        """Mean loss on the held-out batches, nats per token. Every process reads them all."""
        tally = loss.Tally()
        with torch.no_grad(), self._autocast():
            for batch in self.heldout:
                tally.add(
                    loss.total(self.model, batch, denominator=1.0, mtp_weight=0.0, router_weight=0.0)[1]
                )
        return tally.means()["nll"]

    def export(self) -> Path:
        """Write the bf16 checkpoint with tokenizer files and model card; returns its folder."""
        path, weights = self.output / EXPORT, Snapshot.of(self.model, torch.bfloat16)
        if self.mesh.leads:
            save_checkpoint(weights, path, source=self.recipe.tokenizer)
            write_card(path / "README.md", self.recipe, self.model, self.last, self.heldout_loss)
        return path

    def _save(self) -> None:
        state = {
            "source": self.source.state_dict(),
            "tokens": self.tokens,
            "seconds": self.seconds,
            "last": self.last,
            "lowest": self.lowest,
            "heldout_loss": self.heldout_loss,
            "optimizer": self.optimizer.state_dict(),
        }
        weights = Snapshot.of(self.model)
        if self.mesh.leads:
            checkpoint.save(self.output, self.step, weights, state, self.recipe.tokenizer)

    def _start(self) -> None:
        """Go back to the last checkpoint, if there is one, and take this process's part of it."""
        path, state = checkpoint.latest(self.output), dict[str, Any]()
        if path:
            state = checkpoint.load(path, self.model)
            self.source.load_state_dict(state["source"])
            self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
            self.last, self.heldout_loss = state["last"], state["heldout_loss"]
            self.lowest = state.get("lowest", math.inf)
        self.model.to(self.recipe.device)
        if self.recipe.recompute:
            recompute_layers(self.model)
        self.mesh.place(self.model)
        self.optimizer = Optimizer(self.model, self.model.config, self.recipe.optim, self.mesh)
        if state:
            self.optimizer.load_state_dict(state["optimizer"])
        if self.mesh.leads:
            self.metrics.cut(self.step)

    def _log(self, tally: loss.Tally, norm: float) -> None:
        tally = tally.shared(self.mesh.sum)
        self.last = {
            "step": self.step,
            "tokens": self.tokens,
            **tally.means(),
            "gradient_norm": norm,
            "lr_scale": self.recipe.schedule.lr_scale(self.step - 1),
            "seconds": self.seconds,
            "tokens_per_second": tally.tokens / tally.seconds,
        }
        self._write(self.last)
        rise, allowed = self.last["nll"] - self.lowest, self.recipe.loss.most_rise
        if allowed and rise > allowed:
            raise ValueError(
                f"the run has diverged: at step {self.step} the loss is {rise:.2f} nats above its "
                f"lowest, and loss.most_rise is {allowed:g}: {self._advice()}"
            )
        self.lowest = min(self.lowest, self.last["nll"])

    def _advice(self) -> str:
        kept = checkpoint.latest(self.output)
        place = kept or "the start, as no checkpoint was written yet"
        return f"lower optim.muon_lr and optim.adamw_lr, and go on from {place}"

    def _write(self, metrics: Metrics) -> None:
        if self.mesh.leads:
            self.metrics.add(metrics)

    def _autocast(self) -> torch.autocast:
        kind = self.recipe.device.split(":")[0]
        return torch.autocast(kind, torch.bfloat16, enabled=self.recipe.dtype == "bfloat16")

    def _on_device(self, batch: Batch) -> Batch:
        device = self.recipe.device
        return replace(batch, ids=batch.ids.to(device), weights=batch.weights.to(device))


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
