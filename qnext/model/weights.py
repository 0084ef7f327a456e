"""The weights: moved between a checkpoint's published tensors and the parameters of `Qwen3Next`, both ways.

Called by `Qwen3Next.from_pretrained` and `save_pretrained`. Invariant: import fills every parameter or
raises; what is exported is, in the model's dtype, bit for bit what was imported. Both stream: beside the
parameters they hold a few MiB.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from itertools import groupby
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from . import fp8, inventory
from .checkpoint import CONFIG, INDEX, SINGLE, Checkpoint
from .config import ModelConfig
from .layout import Entry, layout
from .rows import Rows, blocks
from .shard import BLOCK, TensorInfo, read_into, same_data, write_shard

# Files of a checkpoint that belong to neither the network nor its weights.
COMPANIONS = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)


Progress = Callable[[int, int], object]


class Network(Protocol):
    """What is asked of a model: its shape and its parameters by name."""

    config: ModelConfig

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...


def load_weights(model: Network, checkpoint: Checkpoint, progress: Progress | None = None) -> None:
    """Fill every parameter, which keeps its own dtype and device; float8 blocks are dequantised.

    `progress` is told, after each tensor, how many bytes have been read, and of how many.
    Raises ValueError naming file, tensor and expectation if the checkpoint is not exactly this network's; all
    but a damaged scale is found before any parameter is touched.
    """
    check_weights(model.config, checkpoint)
    entries, done = layout(model.config), 0
    total = sum(checkpoint.tensors[entry.name].nbytes for entry in entries)
    for nbytes in fill(model.named_parameters(), checkpoint, entries):
        done += nbytes
        if progress:
            progress(done, total)


def fill(
    parameters: Iterable[tuple[str, Tensor]], checkpoint: Checkpoint, entries: Iterable[Entry]
) -> Iterator[int]:
    """Fill these parameters, which are all that these entries hold; gives the bytes of each tensor read.

    Raises ValueError on a damaged scale; all else is to be found before, by `check_weights`.
    """
    entries = list(entries)
    rows = Rows(parameters, entries)
    placed = [(checkpoint.tensors[entry.name], entry) for entry in entries]
    placed.sort(key=lambda pair: (pair[0].file, pair[0].offset))
    buffer = torch.empty(BLOCK, dtype=torch.uint8)
    for path, group in groupby(placed, key=lambda pair: pair[0].file):
        with open(path, "rb", buffering=0) as file:
            for info, entry in group:
                scale = None
                if info.dtype == fp8.DTYPE:
                    assert checkpoint.fp8_block is not None
                    scales = checkpoint.tensors[entry.name + fp8.SCALE]
                    scale = fp8.Scale.read(entry.name, scales, checkpoint.fp8_block)
                source = _Source(file, info, scale, buffer)
                first = 0
                for run in rows.of(entry):
                    source.copy(first, run)
                    first += len(run)
                yield info.nbytes


@dataclass(frozen=True)
class _Source:
    """One stored tensor, ready to be read by rows."""

    file: FileIO
    info: TensorInfo
    scale: fp8.Scale | None
    buffer: Tensor

    def copy(self, first: int, target: Tensor) -> None:
        """Fill `target` [n, width] with the rows from `first` on; straight from the file if all agrees."""
        pitch = target.shape[1] * self.info.dtype.itemsize
        if target.device.type == "cpu" and target.dtype == self.info.dtype:
            read_into(self.file, self.info.offset + first * pitch, target)
            return
        for block in blocks(target, self.info.dtype.itemsize):
            stored = self.buffer[: len(block) * pitch].view(self.info.dtype).view(block.shape)
            read_into(self.file, self.info.offset + first * pitch, stored)
            block.copy_(stored if self.scale is None else self.scale.apply(stored, first))
            first += len(block)


def check_weights(config: ModelConfig, checkpoint: Checkpoint) -> None:
    """Raises ValueError unless the tensors are exactly those of a network of this shape; a head beside a tied
    embedding must be a copy of it."""
    checkpoint.check(config)
    head = checkpoint.tensors.get(inventory.HEAD)
    if config.tie_word_embeddings and head and not same_data(head, checkpoint.tensors[inventory.EMBEDDING]):
        raise ValueError(
            f"{head.file}: tensor {inventory.HEAD!r} differs from {inventory.EMBEDDING!r}, "
            f"but {CONFIG} says tie_word_embeddings = true"
        )


def save_weights(model: Network, path: str | Path, *, max_shard_bytes: int = 5_000_000_000) -> None:
    """Write the parameters under their published names, in their own dtype, replacing the weights in `path`.

    One `model.safetensors`, or several shards and an index where they take more than `max_shard_bytes`. A
    save that fails leaves the directory as it was.
    """
    with _replacing(Path(path)) as aside:
        _write(model, aside, max_shard_bytes)


def save_checkpoint(
    model: Network,
    path: str | Path,
    *,
    source: str | Path | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """`save_weights` and `config.json`, and the tokenizer and generation files of `source`, if given."""
    if source is not None and not Path(source).is_dir():
        raise ValueError(f"{source}: no such checkpoint directory")
    with _replacing(Path(path)) as aside:
        dtype = _write(model, aside, max_shard_bytes)
        config = {**model.config.to_dict(), "torch_dtype": str(dtype).removeprefix("torch.")}
        _write_json(aside / CONFIG, config)
        for name in COMPANIONS:
            if source is not None and Path(source, name).is_file():
                shutil.copyfile(Path(source, name), aside / name)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A directory to write to; when all went well its files move into `path`, and older weights there go."""
    path.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path, prefix=".saving-") as aside:
        yield Path(aside)
        new = {file.name for file in Path(aside).iterdir()}
        for name in sorted(new):
            os.replace(Path(aside, name), path / name)
    for file in {*path.glob("model-?????-of-?????.safetensors"), path / SINGLE, path / INDEX}:
        if file.name not in new:
            file.unlink(missing_ok=True)


def _write(model: Network, path: Path, max_shard_bytes: int) -> torch.dtype:
    """Write shards, and an index if there are several; returns the dtype of most numbers."""
    entries = layout(model.config)
    rows = Rows(model.named_parameters(), entries)
    shards, total, filled = [list[Entry]()], 0, 0
    counts: Counter[torch.dtype] = Counter()
    for entry in entries:
        dtype, numel = rows.dtype(entry), math.prod(entry.shape)
        counts[dtype] += numel
        nbytes = numel * dtype.itemsize
        if shards[-1] and filled + nbytes > max_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled, total = filled + nbytes, total + nbytes
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = SINGLE if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        # wider numbers first, so that every tensor begins at a multiple of its own width
        shard.sort(key=lambda entry: -rows.dtype(entry).itemsize)
        tensors = {entry.name: (rows.dtype(entry), entry.shape) for entry in shard}
        runs = (run for entry in shard for run in rows.of(entry))
        write_shard(path / name, tensors, (block for run in runs for block in blocks(run, run.itemsize)))
        places.update(dict.fromkeys(tensors, name))
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
        _write_json(path / INDEX, index)
    return counts.most_common(1)[0][0]


def _write_json(path: Path, table: dict[str, object]) -> None:
    path.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
