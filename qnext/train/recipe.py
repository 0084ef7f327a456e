"""Recipe: everything that decides a training run, read from one TOML file.

The trainer reads it, the model card quotes it. Invariant: a recipe that exists is legal, and on the
same data, machine and number of threads it always gives the same weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qnext import config

from .mesh import MeshSettings
from .mixture import DataSpec
from .optim import OptimSettings


@dataclass(frozen=True)
class Schedule:
    """How long a run is and how its learning rates go: a linear warm-up, flat, a linear decay to zero."""

    steps: int
    warmup_steps: int = 30
    decay_fraction: float = 0.4  # of all steps
    accumulate: int = 1  # batches of one step

    def __post_init__(self) -> None:
        _at_least("steps", self.steps, 1)
        _at_least("warmup_steps", self.warmup_steps, 0)
        _at_least("accumulate", self.accumulate, 1)
        if not 0 <= self.decay_fraction <= 1:
            raise ValueError(f"decay_fraction must be between 0 and 1, not {self.decay_fraction}")

    def lr_scale(self, step: int) -> float:
        """What multiplies the learning rates of step `step`, counted from 0; in (0, 1]."""
        rising = (step + 1) / (self.warmup_steps + 1)
        falling = (self.steps - step) / (self.steps * self.decay_fraction) if self.decay_fraction else 1.0
        return min(1.0, rising, falling)


@dataclass(frozen=True)
class LossSettings:
    """Weights of the loss's parts; that of the MTP head moves in a line from start to end over the run.

    The head looks `mtp_depth` tokens ahead, each from its own last look, as in drafting. `z` weighs the
    squared log-sums of the logits, which keeps them from drifting. A run whose reported loss is `most_rise`
    nats above its lowest has diverged and ends (0: never).
    """

    router: float = 0.01
    mtp_start: float = 0.3
    mtp_end: float = 0.1
    mtp_depth: int = 1
    z: float = 0.0
    most_rise: float = 3.0

    def __post_init__(self) -> None:
        for name in ("router", "mtp_start", "mtp_end", "z", "most_rise"):
            _at_least(name, getattr(self, name), 0)
        _at_least("mtp_depth", self.mtp_depth, 1)

    def mtp(self, progress: float) -> float:
        """The MTP weight at a share `progress` of the run."""
        return self.mtp_start + (self.mtp_end - self.mtp_start) * progress


@dataclass(frozen=True)
class Heldout:
    """Text that is never learned from, and how many of its batches an evaluation reads."""

    data: DataSpec
    batches: int = 4

    def __post_init__(self) -> None:
        _at_least("batches", self.batches, 1)


@dataclass(frozen=True)
class Licence:
    """One part of the training data as the model card states it."""

    part: str
    licence: str
    origin: str = ""


@dataclass(frozen=True)
class Recipe:
    """A training run, from the checkpoint directory `init` or from fresh weights of the shape `model`.

    `model` holds `config.json` fields plus `mtp_layers`. `tokenizer` is a directory of tokenizer and
    generation files: vocabulary size and token ids come from it, and an exported checkpoint gets them.
    """

    name: str
    output: Path
    tokenizer: Path
    schedule: Schedule
    data: DataSpec
    description: str = ""
    seed: int = 0
    init: Path | None = None
    model: dict[str, Any] = field(default_factory=dict)
    optim: OptimSettings = field(default_factory=OptimSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    mesh: MeshSettings = field(default_factory=MeshSettings)
    heldout: Heldout | None = None
    licences: tuple[Licence, ...] = ()
    device: str = "cpu"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"  # of matrix products; weights stay float32
    recompute: bool = False  # a layer's activations in the backward instead of keeping them (checkpointing)
    threads: int = 1
    save_every_minutes: float = 5.0
    log_every: int = 10  # steps
    eval_every: int = 100  # steps
    tensorboard: bool = False  # metrics as event files too

    def __post_init__(self) -> None:
        if self.init and self.model:
            raise ValueError(
                "give either init (a checkpoint to start from) or model (fresh weights), not both"
            )
        if not self.init and not self.model:
            raise ValueError("give init (a checkpoint to start from) or model (the shape of fresh weights)")
        for name in ("threads", "log_every", "eval_every"):
            _at_least(name, getattr(self, name), 1)
        _at_least("save_every_minutes", self.save_every_minutes, 0)

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> "Recipe":
        """Read a recipe file, then `key=value` overrides. Raises ValueError naming the file and the key."""
        return config.load(cls, path, overrides)


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise ValueError(f"{name} must be {least} or more, not {value}")
