"""The trainer: recipe in, exported checkpoint out. Pretraining, instruct and thinking runs are all this loop.

`train` is called by the command line; `Trainer` is for use from Python. Invariant: at every moment the output
folder holds a whole checkpoint to go on from, and going on gives the weights of a run that was never stopped.
"""

import contextlib
import copy
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from qnext.model.config import ModelConfig
from qnext.model.qwen3_next import Qwen3Next
from qnext.text.tokenizer import Tokenizer

from . import checkpoint, loss
from .batch import Batch
from .card import write_card
from .mixture import open_source
from .optim import Optimizer
from .recipe import Recipe

EXPORT = "model"
METRICS = "metrics.jsonl"
# Fields of config.json and the tokenizer's names for them; as published, a text begins with the end token.
_CONFIG_TOKENS = {"bos_token_id": "pad_token", "eos_token_id": "eos_token", "pad_token_id": "pad_token"}

Metrics = dict[str, float]


def train(
    recipe_path: str | Path, overrides: Sequence[str] = (), console: Console | None = None
) -> Path | None:
    """Train a recipe file to its end; returns the exported checkpoint, or None if a signal stopped the run.

    Run again, it goes on from the last checkpoint in the output folder. Raises ValueError on a wrong recipe,
    and on a loss that is not a number.
    """
    trainer = Trainer(Recipe.load(recipe_path, overrides))
    if console is None:
        return trainer.run()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(
            trainer.recipe.name, total=trainer.recipe.schedule.steps, completed=trainer.step
        )

        def show(step: int, metrics: Metrics) -> None:
            words = f"loss {metrics['nll']:.3f}, {metrics['tokens_per_second']:.0f} tokens/s"
            progress.update(task, completed=step, description=f"{trainer.recipe.name}: {words}")

        return trainer.run(show)


class Trainer:
    """One run of a recipe. Made, it has already gone back to the last checkpoint in the output folder."""

    def __init__(self, recipe: Recipe) -> None:
        torch.set_num_threads(recipe.threads)
        torch.set_flush_denormal(True)  # decays underflow; arithmetic on denormals is many times slower
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        tokenizer = Tokenizer.from_pretrained(recipe.tokenizer)
        self.model = build_model(recipe, tokenizer).to(recipe.device)
        positions = self.model.config.max_position_embeddings
        if recipe.data.max_length > positions:
            raise ValueError(
                f"data.max_length is {recipe.data.max_length}, the network has {positions} positions: "
                "lower it"
            )
        self.optimizer = Optimizer(self.model, self.model.config, recipe.optim)
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
        self.output = recipe.output
        self.output.mkdir(parents=True, exist_ok=True)
        self._resume()

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
                if ended or stop.is_set() or time.monotonic() - saved > recipe.save_every_minutes * 60:
                    self._save()
                    saved = time.monotonic()
                if stop.is_set() and not ended:
                    return None
        return self.export()

    def _train_step(self, tally: loss.Tally) -> float:
        """One optimiser step; returns the gradient's norm. Raises ValueError when it is not finite."""
        started, schedule = time.monotonic(), self.recipe.schedule
        batches = [self._on_device(self.source.next()) for _ in range(schedule.accumulate)]
        denominator = max(sum(float(batch.weights.sum()) for batch in batches), 1e-9)
        for batch in batches:
            with self._autocast():
                part, seen = loss.total(
                    self.model,
                    batch,
                    denominator=denominator,
                    mtp_weight=self.recipe.loss.mtp(self.step / schedule.steps),
                    router_weight=self.recipe.loss.router / schedule.accumulate,
                )
            part.backward()
            tally.add(seen)
            self.tokens += seen.tokens
        norm = self.optimizer.step(schedule.lr_scale(self.step))
        if not math.isfinite(norm) or not math.isfinite(tally.nll):
            kept = checkpoint.latest(self.output)
            raise ValueError(
                f"the loss or its gradient is no finite number at step {self.step + 1}: lower optim.muon_lr "
                f"and optim.adamw_lr, and go on from {kept or 'the start, as no checkpoint was written yet'}"
            )
        self.step += 1
        elapsed = time.monotonic() - started
        tally.seconds += elapsed
        self.seconds += elapsed
        return norm

    def evaluate(self) -> float:
        """Mean loss on the held-out batches, nats per token."""
        tally = loss.Tally()
        with torch.no_grad(), self._autocast():
            for batch in self.heldout:
                tally.add(
                    loss.total(self.model, batch, denominator=1.0, mtp_weight=0.0, router_weight=0.0)[1]
                )
        return tally.means()["nll"]

    def export(self) -> Path:
        """Write the bf16 checkpoint with tokenizer files and model card; returns its folder."""
        path = self.output / EXPORT
        copy.deepcopy(self.model).bfloat16().save_pretrained(path, source=self.recipe.tokenizer)
        write_card(path / "README.md", self.recipe, self.model, self.last, self.heldout_loss)
        return path

    def _save(self) -> None:
        state = {
            "source": self.source.state_dict(),
            "tokens": self.tokens,
            "seconds": self.seconds,
            "last": self.last,
            "heldout_loss": self.heldout_loss,
        }
        checkpoint.save(self.output, self.step, self.model, self.optimizer, state, self.recipe.tokenizer)

    def _resume(self) -> None:
        """Go back to the last checkpoint, and drop the metrics of steps that will be taken again."""
        path = checkpoint.latest(self.output)
        if path:
            state = checkpoint.load(path, self.model, self.optimizer)
            self.source.load_state_dict(state["source"])
            self.step, self.tokens, self.seconds = state["step"], state["tokens"], state["seconds"]
            self.last, self.heldout_loss = state["last"], state["heldout_loss"]
        metrics = self.output / METRICS
        lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.exists() else []
        kept = [line + "\n" for line in lines if line.endswith("}") and json.loads(line)["step"] <= self.step]
        metrics.write_text("".join(kept), encoding="utf-8")

    def _log(self, tally: loss.Tally, norm: float) -> None:
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

    def _write(self, metrics: Metrics) -> None:
        with open(self.output / METRICS, "a", encoding="utf-8") as file:
            file.write(json.dumps({name: float(f"{value:.6g}") for name, value in metrics.items()}) + "\n")

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.recipe.device, torch.bfloat16, enabled=self.recipe.dtype == "bfloat16")

    def _on_device(self, batch: Batch) -> Batch:
        device = self.recipe.device
        return replace(batch, ids=batch.ids.to(device), weights=batch.weights.to(device))


def build_model(recipe: Recipe, tokenizer: Tokenizer) -> Qwen3Next:
    """The fp32 network a recipe starts from: the checkpoint `init`, or fresh weights of shape `model`."""
    ends = {field: tokenizer.special_tokens.get(name) for field, name in _CONFIG_TOKENS.items()}
    ids: dict[str, Any] = {field: tokenizer.control.get(token or "") for field, token in ends.items()}
    if recipe.init:
        model = Qwen3Next.from_pretrained(recipe.init, dtype=torch.float32)
        if model.config.vocab_size < tokenizer.vocab_size:
            raise ValueError(
                f"{recipe.tokenizer} has {tokenizer.vocab_size} tokens, the network of {recipe.init} only "
                f"{model.config.vocab_size}: give the tokenizer it was trained with"
            )
        model.config = replace(model.config, dtype="bfloat16", **ids)
        return model.train().requires_grad_(True)
    table = dict(recipe.model)
    layers = table.pop("mtp_layers", 1)
    try:
        config = ModelConfig.from_dict(
            {**table, **ids, "vocab_size": tokenizer.vocab_size}, mtp_layers=layers
        )
    except ValueError as error:
        raise ValueError(f"[model] of the recipe: {str(error).removeprefix('config.json: ')}") from None
    return Qwen3Next(config)


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
