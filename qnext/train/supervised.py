"""The supervised stage: learning to predict the next tokens of texts and conversations.

Pretraining, instruct and thinking runs are this one; the trainer makes it. Invariant: every process of a mesh
reads all rows and learns from its own, so that the data's place is the same on any mesh.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qnext.model.qwen3_next import Qwen3Next

from . import loss
from .batch import Batch
from .mesh import Mesh
from .metrics import Metrics
from .mixture import open_source
from .network import autocast
from .optim import Optimizer
from .recipe import Recipe


class Supervised:
    """See `Stage`. Raises ValueError where the mesh cannot share out a step's batches, or naming the data at
    fault."""

    heldout_metric = "heldout_nll"

    def __init__(self, recipe: Recipe, model: Qwen3Next, optimizer: Optimizer, mesh: Mesh) -> None:
        self.recipe, self.model, self.optimizer, self.mesh = recipe, model, optimizer, mesh
        self.source = open_source(recipe.data, recipe.tokenizer, recipe.seed)
        self.heldout: list[Batch] = []
        if recipe.heldout:
            with contextlib.closing(
                open_source(recipe.heldout.data, recipe.tokenizer, recipe.seed)
            ) as source:
                self.heldout = [self._on_device(source.next()) for _ in range(recipe.heldout.batches)]
        self.tokens = 0
        self._tally = loss.Tally()

    def step(self, number: int) -> float:
        """One optimiser step."""
        started, schedule, tally = time.monotonic(), self.recipe.schedule, self._tally
        batches = [self._on_device(self.source.next()) for _ in range(schedule.accumulate)]
        denominator = max(sum(float(batch.weights.sum()) for batch in batches), 1e-9)
        mine = batches[self.mesh.rank :: self.mesh.size]
        total = partial(
            loss.total,
            self.model,
            denominator=denominator,
            mtp_weight=self.recipe.loss.mtp(number / schedule.steps),
            router_weight=self.recipe.loss.router,
            z_weight=self.recipe.loss.z,
            mtp_depth=self.recipe.loss.mtp_depth,
        )
        share = loss.Share(sum(len(batch.ids) for batch in batches), self._counts(mine, total))
        for batch in mine:
            with autocast(self.recipe):
                part, seen = total(batch, share=share)
            part.backward()
            tally.add(seen)
        self.tokens += share.tokens
        norm = self.optimizer.step(schedule.lr_scale(number))
        tally.steps += 1
        tally.seconds += time.monotonic() - started
        return norm if math.isfinite(tally.nll) else math.nan

    def report(self) -> Metrics:
        """Losses, loads and speed of all processes together."""
        tally = self._tally.shared(self.mesh.sum)
        self._tally = loss.Tally()
        return {**tally.means(), "tokens_per_second": tally.tokens / tally.seconds}

    def evaluate(self) -> float:
        """Mean loss on the held-out batches, nats per token. Every process reads them all."""
        tally = loss.Tally()
        with torch.no_grad(), autocast(self.recipe):
            for batch in self.heldout:
                tally.add(
                    loss.total(self.model, batch, denominator=1.0, mtp_weight=0.0, router_weight=0.0)[1]
                )
        return tally.means()["nll"]

    def state_dict(self) -> dict[str, Any]:
        return {"source": self.source.state_dict(), "tokens": self.tokens}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.source.load_state_dict(state["source"])
        self.tokens = state["tokens"]

    def close(self) -> None:
        self.source.close()

    def _counts(
        self, batches: list[Batch], total: Callable[..., tuple[Tensor, loss.Tally]]
    ) -> Callable[[Tensor], Tensor]:
        """What turns a row's choices of experts into those of the whole step.

        Where a process has several rows they are known only after a forward of each: it is done twice.
        """
        if len(batches) == 1 or not self.recipe.loss.router or not self.model.config.num_experts:
            return self.mesh.sum
        seen = loss.Tally()
        with torch.no_grad(), autocast(self.recipe):
            for batch in batches:
                seen.add(total(batch)[1])
        counts = self.mesh.sum(seen.loads)
        return lambda _: counts

    def _on_device(self, batch: Batch) -> Batch:
        device = self.recipe.device
        return replace(batch, ids=batch.ids.to(device), weights=batch.weights.to(device))
