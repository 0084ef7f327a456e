"""The metrics file: one JSON line for each report of a run.

The trainer writes it, the loss curve is drawn from it. Invariant: it holds what happened on the way to the
last checkpoint and since, once, whatever stopped the run in between.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

FILE = "metrics.jsonl"

Metrics = dict[str, float]


class MetricsFile:
    """`metrics.jsonl` of an output folder."""

    def __init__(self, output: Path) -> None:
        self.path = output / FILE

    def add(self, metrics: Metrics) -> None:
        """Append one line, numbers with six digits."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({name: float(f"{value:.6g}") for name, value in metrics.items()}) + "\n")

    def cut(self, step: int) -> None:
        """Drop the lines of later steps, which will be taken again, and one that was never finished."""
        kept = "".join(json.dumps(line) + "\n" for line in self.read() if line["step"] <= step)
        aside = self.path.with_suffix(".saving")
        aside.write_text(kept, encoding="utf-8")
        os.replace(aside, self.path)

    def read(self) -> Sequence[Metrics]:
        """Every whole line, in order."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]
