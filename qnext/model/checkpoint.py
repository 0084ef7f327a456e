"""A checkpoint: a directory with `config.json` and safetensors shards, opened and checked, not yet read.

Made by `Qwen3Next.from_pretrained`, read by `weights`. Invariant: every shard is whole, the index (if any)
and the shards agree on every name, no name stands twice, and the quantisation that `config.json` states is
the one that the tensors have. Whether they are the tensors of a network is answered by `check`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from . import fp8, inventory
from .config import ModelConfig
from .layout import layout
from .shard import DTYPES, TensorInfo, read_header

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = "model*.safetensors"


class Checkpoint:
    """An opened checkpoint directory. Raises ValueError, naming file and tensor or field, if it is broken.

    `config_dict`: the parsed `config.json`. `tensors`: every stored tensor by its published name. `listing`:
    the file that says which tensors there are. `dtype`: what most numbers are stored in, float8 apart.
    `mtp_layers`: 1 when there are multi-token-prediction tensors, else 0. `fp8_block`: rows and columns that
    share a scale, None for a checkpoint that is not quantised.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise ValueError(f"{path}: no such checkpoint directory")
        self.config_dict = read_json(self.path / CONFIG)
        self.fp8_block = fp8.block_of(self.path / CONFIG, self.config_dict)
        self.listing, self.tensors = read_tensors(self.path)
        fp8.check_stated(self.path / CONFIG, self.fp8_block, self.tensors)
        self.mtp_layers = mtp_layers_of(self.tensors)
        counts: Counter[torch.dtype] = Counter()
        for info in self.tensors.values():
            if info.dtype != fp8.DTYPE:
                counts[info.dtype] += info.numel
        self.dtype = counts.most_common(1)[0][0] if counts else torch.bfloat16

    def check(self, config: ModelConfig) -> None:
        """Raises ValueError unless the tensors are exactly those of a network of this shape."""
        inventory.check(config, layout(config), self.tensors, self.listing, self.fp8_block)


def mtp_layers_of(names: Iterable[str]) -> int:
    """How many multi-token-prediction layers tensors of these published names make: 0 or 1."""
    return int(any(name.startswith("mtp.") for name in names))


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError, naming the file, if it holds anything else."""
    if not path.is_file():
        raise ValueError(f"{path}: file is missing; a checkpoint has one")
    try:
        table = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: broken JSON: {error}") from None
    if not isinstance(table, dict):
        raise ValueError(f"{path}: holds {type(table).__name__}, expected a JSON object")
    return table


def read_tensors(
    path: Path, dtypes: Mapping[str, torch.dtype] = DTYPES
) -> tuple[Path, dict[str, TensorInfo]]:
    """The listing file of a directory, and the tensors that it and the shards agree on."""
    single, index = path / SINGLE, path / INDEX
    found = {file.name for file in path.glob(SHARDS)}
    if index.is_file():
        return index, _read_indexed(index, found, dtypes)
    if not single.is_file():
        if found:
            raise ValueError(f"{index}: file is missing; it says what is in {', '.join(sorted(found))}")
        if any(path.glob("*.bin")):
            raise ValueError(
                f"{single}: file is missing; only safetensors are read, convert the .bin files first"
            )
        raise ValueError(f"{single}: file is missing (and so is {INDEX}): the directory holds no weights")
    if found != {SINGLE}:
        raise ValueError(f"{path / min(found - {SINGLE})}: stands next to {SINGLE}, but no {INDEX} names it")
    tensors = read_header(single, dtypes)
    if not tensors:
        raise ValueError(f"{single}: holds no tensors")
    return single, tensors


def _read_indexed(index: Path, found: set[str], dtypes: Mapping[str, torch.dtype]) -> dict[str, TensorInfo]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index}: weight_map is {places!r}, expected tensor names and their shards")
    for name, shard in places.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise ValueError(f"{index}: weight_map puts {name!r} into {shard!r}, expected a file name")
        if not (index.parent / shard).is_file():
            raise ValueError(f"{index}: weight_map puts {name!r} into {shard}, but that file is missing")
    shards = set(places.values())
    if found - shards:
        raise ValueError(
            f"{index.parent / min(found - shards)}: not named by {INDEX}; remove it or mend the index"
        )
    tensors: dict[str, TensorInfo] = {}
    for shard in sorted(shards):
        for name, info in read_header(index.parent / shard, dtypes).items():
            if name in tensors:
                raise ValueError(f"{info.file}: tensor {name!r} stands in {tensors[name].file.name} too")
            tensors[name] = info
    for name, shard in places.items():
        if name not in tensors:
            raise ValueError(f"{index}: weight_map puts {name!r} into {shard}, which does not have it")
        if tensors[name].file.name != shard:
            raise ValueError(
                f"{index}: weight_map puts {name!r} into {shard}, it is in {tensors[name].file.name}"
            )
    for name, info in tensors.items():
        if name not in places:
            raise ValueError(f"{info.file}: tensor {name!r} is not in the weight_map of {INDEX}")
    return tensors
