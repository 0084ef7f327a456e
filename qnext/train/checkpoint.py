"""Training checkpoints: folders `step-00000120` in a run's output, each complete, the last two kept.

The trainer saves and loads them. Invariant: a folder with that name is whole (it is written aside, brought to
the disk and renamed), and training on from it is bit for bit the uninterrupted training. The weights are an
fp32 checkpoint in the published layout, which can be served as it is; `training.pt` holds the rest.
"""

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch

from qnext.model.checkpoint import Checkpoint
from qnext.model.qwen3_next import Qwen3Next
from qnext.model.weights import Network, load_weights, save_checkpoint

STATE = "training.pt"
KEEP = 2


def save(output: Path, step: int, model: Network, state: dict[str, Any], companions: Path) -> Path:
    """Write the checkpoint of `step` and remove all but the last two; returns its folder.

    `state`: plain Python values and tensors to get back from `load`. Tokenizer files come from `companions`.
    Raises ValueError when it cannot be written, as on a full disk; the older checkpoints are untouched then.
    """
    aside, target = output / ".saving", output / f"step-{step:08}"
    try:
        for leftover in (aside, target):
            if leftover.exists():
                shutil.rmtree(leftover)
        aside.mkdir(parents=True)
        save_checkpoint(model, aside, source=companions)
        whole = {**state, "step": step, "rng": torch.get_rng_state()}
        with open(aside / STATE, "wb") as file:
            torch.save(whole, file)
        _settle(aside)
        os.replace(aside, target)
        _settle(output)
    except (OSError, RuntimeError) as error:  # torch's own writer turns an OSError into a RuntimeError
        shutil.rmtree(aside, ignore_errors=True)
        reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
        raise ValueError(
            f"{target}: the checkpoint could not be written ({reason}): make room there or give another "
            f"output; the run goes on from {latest(output) or 'the start'}"
        ) from error
    for old in _all(output)[:-KEEP]:
        shutil.rmtree(old)
    return target


def latest(output: Path) -> Path | None:
    """The newest checkpoint folder of a run, if it has one."""
    folders = _all(output)
    return folders[-1] if folders else None


def load(path: Path, model: Qwen3Next) -> dict[str, Any]:
    """Put weights and random state back; returns the `state` that was saved, and its `step`.

    Raises ValueError when the checkpoint is of another network, or damaged.
    """
    try:
        load_weights(model, Checkpoint(path))
    except ValueError as error:
        raise ValueError(
            f"{path} does not fit this recipe: {error}. Give another output, or the recipe it was made by"
        ) from None
    try:
        state: dict[str, Any] = torch.load(path / STATE, map_location="cpu", weights_only=True)
        torch.set_rng_state(state.pop("rng"))
    except (OSError, RuntimeError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path / STATE} is damaged ({error}): remove {path}, and the run goes on from the one before"
        ) from None
    return state


def _settle(folder: Path) -> None:
    """Wait until the disk has a folder's entries and their contents: a rename may overtake what it names."""
    for path in (*folder.glob("*"), folder):
        if path.is_file() or path == folder:
            place = os.open(path, os.O_RDONLY)
            try:
                os.fsync(place)
            finally:
                os.close(place)


def _all(output: Path) -> list[Path]:
    return sorted(path for path in output.glob("step-*") if (path / STATE).is_file())
