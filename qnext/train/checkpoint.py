"""Training checkpoints: folders `step-00000120` in a run's output, each complete, the last two kept.

The trainer saves and loads them. Invariant: a folder with that name is whole (it is written aside and
renamed), and training on from it is bit for bit the uninterrupted training. The weights are an fp32
checkpoint in the published layout, which can be served as it is; `training.pt` holds the rest.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from qnext.model.checkpoint import Checkpoint
from qnext.model.qwen3_next import Qwen3Next
from qnext.model.weights import load_weights

from .optim import Optimizer

STATE = "training.pt"
KEEP = 2


def save(
    output: Path, step: int, model: Qwen3Next, optimizer: Optimizer, state: dict[str, Any], companions: Path
) -> Path:
    """Write the checkpoint of `step` and remove all but the last two; returns its folder.

    `state`: plain Python values and tensors to get back from `load`. Tokenizer files come from `companions`.
    """
    aside, target = output / ".saving", output / f"step-{step:08}"
    for leftover in (aside, target):
        if leftover.exists():
            shutil.rmtree(leftover)
    aside.mkdir(parents=True)
    model.save_pretrained(aside, source=companions)
    whole = {**state, "step": step, "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
    torch.save(whole, aside / STATE)
    os.replace(aside, target)
    for old in _all(output)[:-KEEP]:
        shutil.rmtree(old)
    return target


def latest(output: Path) -> Path | None:
    """The newest checkpoint folder of a run, if it has one."""
    folders = _all(output)
    return folders[-1] if folders else None


def load(path: Path, model: Qwen3Next, optimizer: Optimizer) -> dict[str, Any]:
    """Put weights, optimiser and random state back; returns the `state` that was saved, and its `step`.

    Raises ValueError when the checkpoint is of another network.
    """
    load_weights(model, Checkpoint(path))
    state: dict[str, Any] = torch.load(path / STATE, map_location="cpu", weights_only=True)
    optimizer.load_state_dict(state.pop("optimizer"))
    torch.set_rng_state(state.pop("rng"))
    return state


def _all(output: Path) -> list[Path]:
    return sorted(path for path in output.glob("step-*") if (path / STATE).is_file())
