"""Recipe: everything that decides a training run, read from one TOML file.

The trainer reads it, the model card quotes it. Invariant: a recipe that exists is legal, and on the
same data, machine and number of threads it always gives the same weights.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from qnext import config

from .growth import Growth
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
class RLSettings:
    """Reinforcement: answers are drawn from the model itself, judged, and made more or less likely.

    A step draws `group` answers, of at most `max_tokens` each, to each of `prompts` questions, and learns
    from them in `updates` steps of the optimiser, a share of the answers each. `algorithm`: "gspo" weighs a
    whole answer by its length-normalised likelihood ratio, "grpo" each token by its own; beyond 1 -
    `clip_low` and 1 + `clip_high` a ratio earns nothing (None: 3e-4 and 4e-4 for gspo, 0.2 and 0.2 for grpo).
    `scale_advantages` divides a group's advantages by the deviation of its rewards. An answer that is right
    earns 1, one that closes its thought and ends earns `format` (more). `kl` weighs the distance from the
    starting weights. `replay`: the experts that each token went through when it was drawn are used when it is
    learned. `at_once` answers are written at the same time.
    """

    algorithm: Literal["gspo", "grpo"] = "gspo"
    prompts: int = 16
    group: int = 8
    updates: int = 1
    max_tokens: int = 256
    temperature: float = 1.0
    clip_low: float | None = None
    clip_high: float | None = None
    scale_advantages: bool = True
    format: float = 0.1
    kl: float = 0.0
    replay: bool = True
    at_once: int = 64

    def __post_init__(self) -> None:
        for name in ("prompts", "updates", "max_tokens", "at_once"):
            _at_least(name, getattr(self, name), 1)
        if self.group < 2:
            raise ValueError(f"group is {self.group}: give 2 or more, an answer is judged against its group")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}: give more than 0, answers must differ")
        for name in ("format", "kl", "clip_low", "clip_high"):
            _at_least(name, getattr(self, name) or 0.0, 0)
        if (self.clip_low or 0) > 1:
            raise ValueError(f"clip_low is {self.clip_low}: give 0 to 1, a ratio is never below 0")

    @property
    def clip(self) -> tuple[float, float]:
        """How far below and above 1 a ratio still counts."""
        usual = (3e-4, 4e-4) if self.algorithm == "gspo" else (0.2, 0.2)
        low, high = self.clip_low, self.clip_high
        return usual[0] if low is None else low, usual[1] if high is None else high


@dataclass(frozen=True)
class Heldout:
    """Data that is never learned from, and how many of its batches (with [rl]: steps' questions) an
    evaluation reads."""

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

    `grow` makes the network of `init` larger first. `model` holds `config.json` fields plus `mtp_layers`.
    `tokenizer` is a directory of tokenizer and generation files: vocabulary size and token ids come from it,
    and an exported checkpoint gets them. With `rl` the data are questions to answer; without, texts to
    predict.
    """

    name: str
    output: Path
    tokenizer: Path
    schedule: Schedule
    data: DataSpec
    description: str = ""
    seed: int = 0
    init: Path | None = None
    grow: Growth | None = None
    model: dict[str, Any] = field(default_factory=dict)
    optim: OptimSettings = field(default_factory=OptimSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    rl: RLSettings | None = None
    mesh: MeshSettings = field(default_factory=MeshSettings)
    heldout: Heldout | None = None
    licences: tuple[Licence, ...] = ()
    device: str = "cpu"
    # Of matrix products; weights stay float32, and so does all on a CPU without bfloat16.
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    learn: tuple[str, ...] = ()  # patterns of the names of weights that learn (`*embed_tokens*`); none: all
    recompute: bool = False  # a layer's activations in the backward instead of keeping them (checkpointing)
    threads: int = 1
    save_every_minutes: float = 5.0
    log_every: int = 10  # steps
    eval_every: int = 100  # steps
    tensorboard: bool = False  # metrics as event files too
    blend: float = 0.0  # share of the starting weights in the exported ones: what they knew is kept better

    def __post_init__(self) -> None:
        if self.init and self.model:
            raise ValueError(
                "give either init (a checkpoint to start from) or model (fresh weights), not both"
            )
        if not self.init and not self.model:
            raise ValueError("give init (a checkpoint to start from) or model (the shape of fresh weights)")
        if self.grow and not self.init:
            raise ValueError("[grow] makes a checkpoint larger: give init, or leave the table out")
        if not 0 <= self.blend < 1 or (self.blend and not self.init):
            raise ValueError(f"blend is {self.blend}: give 0 to 1, and init, whose weights are taken in")
        if self.blend and self.grow:
            raise ValueError(
                "blend: a grown network's start is random in part; train first, blend in a second run"
            )
        if self.rl:
            self._check_rl(self.rl)
        for name in ("threads", "log_every", "eval_every"):
            _at_least(name, getattr(self, name), 1)
        _at_least("save_every_minutes", self.save_every_minutes, 0)

    def _check_rl(self, rl: RLSettings) -> None:
        """Raises ValueError for what reinforcement cannot do, or would not obey."""
        if not self.init:
            raise ValueError("[rl] goes on from a model that answers questions: give init in place of model")
        specs = {"data": self.data, **({"heldout.data": self.heldout.data} if self.heldout else {})}
        for table, spec in specs.items():
            if any(part.kind != "chat" for part in spec.parts):
                raise ValueError(
                    f"{table}.parts: [rl] asks what a checker can judge: give parts of kind 'chat'"
                )
            if spec.workers:
                raise ValueError(f"{table}.workers: [rl] makes its few questions itself: leave it out")
            if rl.max_tokens >= spec.max_length:
                raise ValueError(
                    f"rl.max_tokens is {rl.max_tokens}, {table}.max_length {spec.max_length}: a question "
                    "and its answer must fit, lower the one or raise the other"
                )
        if self.loss != LossSettings():
            raise ValueError("[loss] is for texts to predict: leave it out beside [rl]")
        if self.mesh.size > 1 or self.schedule.accumulate > 1:
            raise ValueError(
                "[rl] learns in one process and cuts its own rows: leave out mesh and schedule.accumulate"
            )

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> "Recipe":
        """Read a recipe file, then `key=value` overrides. Raises ValueError naming the file and the key."""
        return config.load(cls, path, overrides)


def _at_least(name: str, value: float, least: float) -> None:
    if not value >= least:
        raise ValueError(f"{name} must be {least} or more, not {value}")
