"""The metrics file: one JSON line for each report of a run, and the same for TensorBoard where it is wanted.

The trainer writes it, the loss curve is drawn from it. Invariant: it holds what happened on the way to the
last checkpoint and since, once, whatever stopped the run in between.
"""

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

FILE, EVENTS = "metrics.jsonl", "tensorboard"

Metrics = dict[str, float]


class MetricsFile:
    """`metrics.jsonl` of an output folder and, with `tensorboard`, event files in its folder of that name.

    Raises ValueError where TensorBoard is wanted and not installed.
    """

    def __init__(self, output: Path, *, tensorboard: bool = False) -> None:
        self.path = output / FILE
        self._open_events = partial(_writer(), str(output / EVENTS)) if tensorboard else None
        self._events: Any = None

    def add(self, metrics: Metrics) -> None:
        """Append one line, numbers with six digits."""
        rounded = {name: float(f"{value:.6g}") for name, value in metrics.items()}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(rounded) + "\n")
        if self._events:
            for name in rounded.keys() - {"step"}:
                self._events.add_scalar(name, rounded[name], int(metrics["step"]))
            self._events.flush()

    def cut(self, step: int) -> None:
        """Drop the lines of later steps, which will be taken again, and one that was never finished."""
        if self._open_events:
            self._events = self._open_events(purge_step=step + 1)
        kept = "".join(json.dumps(line) + "\n" for line in self.read() if line["step"] <= step)
        aside = self.path.with_suffix(".saving")
        aside.write_text(kept, encoding="utf-8")
        os.replace(aside, self.path)

    def read(self) -> Sequence[Metrics]:
        """Every whole line, in order."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]


def _writer() -> Any:
    """What makes a writer of event files: its package is an extra."""
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError:
        raise ValueError(
            "tensorboard is true, but TensorBoard is not installed: pip install 'qnext[tensorboard]', "
            "or leave the key out"
        ) from None
    return SummaryWriter
