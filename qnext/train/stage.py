"""Stage: what one kind of run does in a step and tells of it, as the trainer drives it.

`supervised` and `reinforcement` are the two. Invariant: what a stage has done depends on the weights, the
optimiser, the step's number and its own `state_dict` alone, so that a run that was stopped goes on bit for
bit.
"""

from __future__ import annotations

from typing import Any, Protocol

from .metrics import Metrics


class Stage(Protocol):
    """`tokens` is how many were learned from, over all sittings; `heldout_metric` what `evaluate`
    measures."""

    tokens: int
    heldout_metric: str

    def step(self, number: int) -> float:
        """Learn once, as step `number`, counted from 0 -> the norm of the gradient, not finite if the loss is
        not."""
        ...

    def report(self) -> Metrics:
        """What the steps since the last report came to."""
        ...

    def evaluate(self) -> float:
        """The measure on the recipe's held-out data, which there must be."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on exactly from here."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to the place a `state_dict` was taken."""
        ...

    def close(self) -> None:
        """Let go of what runs beside the training."""
        ...
