"""Batch and Source: what a data source hands the trainer.

The trainer calls `Source.next` once per micro-step. Invariant: the documents of a batch lie end to end,
`sum(lengths) == len(ids) == len(weights)`, and the first token of every document has weight 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One micro-step's row: ids [T] int64, weights [T] float32, lengths of the documents laid end to end.

    weights[t] is the loss weight of predicting ids[t] from the ids before it: 0 at the first token of each
    document and on masked turns.
    """

    ids: Tensor
    weights: Tensor
    lengths: tuple[int, ...]


class Source(Protocol):
    """An endless, resumable stream of batches."""

    def next(self) -> Batch:
        """The next batch."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on exactly from here: counts and the examples waiting for a row."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to the place a `state_dict` was taken."""
        ...

    def close(self) -> None:
        """Ends the processes that work for it, if it has any; no batch may be asked for afterwards."""
        ...
