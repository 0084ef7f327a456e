"""What is asked of every peer: one load, so that their figures can stand in one table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Load:
    """Lengths of prompts whose prefill is timed; contexts at which one sequence decodes; batches that decode
    at the first of them; tokens decoded and repeats of each measurement, of which the median counts.
    """

    prompts: tuple[int, ...] = (512, 2048, 4096)
    contexts: tuple[int, ...] = (128, 4096)
    batches: tuple[int, ...] = (4, 8)
    tokens: int = 32
    repeats: int = 3
    threads: int = 2

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Load:
        table = json.loads(text)
        return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in table.items()})


LOAD = Load()
