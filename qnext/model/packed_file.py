"""A packed checkpoint: a directory with `config.json` and the parts of a packed model in safetensors files,
byte for byte as the kernels read them.

Written by `conversion`, opened by whoever runs the model. Invariants: every tensor begins at a multiple of 64
bytes, so that a mapped file serves the kernels as it is; the tensors are exactly those that `config.json` and
its `quantization_config` call for; a directory under its final name is whole.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count, islice
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qnext.kernels import mapped, memory
from qnext.kernels.packed import LINE, Packed

from .checkpoint import CONFIG, INDEX, SINGLE, mtp_layers_of, read_json, read_tensors
from .config import ModelConfig
from .packed_layout import Part, parts
from .quant import Parts, empty
from .scheme import METHOD, Scheme
from .shard import PACKED_DTYPES, TensorInfo, write_shard
from .weights import COMPANIONS

FIELD = "quantization_config"
PADDING = "padding."
DATA, SCALES = ".data", ".scales"
ROOM = 0.9  # of the memory that is free: more is not filled with weights

Sizes = dict[str, tuple[torch.dtype, tuple[int, ...]]]


class PackedModel(NamedTuple):
    """What a packed checkpoint holds: a network's shape, how it was quantised, and its parts."""

    config: ModelConfig
    scheme: Scheme
    parts: Parts


def is_packed(path: str | Path) -> bool:
    """Whether a directory says that it is a packed checkpoint."""
    file = Path(path, CONFIG)
    stated = read_json(file).get(FIELD) if file.is_file() else None
    return isinstance(stated, dict) and stated.get("quant_method") == METHOD


def open_packed(path: str | Path) -> PackedModel:
    """A packed checkpoint as it lies in its files, read if there is room in memory, else mapped.

    Writing to a part changes no file. Raises ValueError naming file and tensor or field.
    """
    config, scheme, tensors = inspect_packed(path)
    maps = {file: _bytes(file) for file in {info.file for info in tensors.values()}}
    views = {
        name: maps[info.file][info.offset : info.offset + info.nbytes].view(info.dtype).view(info.shape)
        for name, info in tensors.items()
    }
    found: Parts = {}
    for part in parts(config):
        if part.packed:
            room = empty(part, scheme, "meta")
            scales = views.get(part.name + SCALES, torch.empty(0, dtype=torch.bfloat16))
            found[part.name] = room._replace(data=views[part.name + DATA], scales=scales)
        else:
            found[part.name] = views[part.name]
    return PackedModel(config, scheme, found)


def inspect_packed(path: str | Path) -> tuple[ModelConfig, Scheme, dict[str, TensorInfo]]:
    """What a packed checkpoint is and where its tensors lie, all checked but their numbers."""
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"{path}: no such checkpoint directory")
    table = read_json(path / CONFIG)
    stated = table.get(FIELD)
    if not isinstance(stated, dict):
        raise ValueError(f"{path / CONFIG}: has no {FIELD}: it is no packed checkpoint")
    scheme = Scheme.from_dict(stated, f"{path / CONFIG}: {FIELD}")
    listing, tensors = read_tensors(path, PACKED_DTYPES)
    config = ModelConfig.from_dict(table, mtp_layers=mtp_layers_of(tensors))
    _check(config, scheme, listing, tensors)
    return config, scheme, tensors


def _bytes(file: Path) -> Tensor:
    """A file in memory, or mapped where it does not fit: then its pages stay the system's file cache's. A
    private mapping: torch has no tensors that cannot be written to."""
    size = file.stat().st_size
    if mapped.supported() and size <= ROOM * memory.available():
        return mapped.map_file(file)
    return torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8)


def _check(config: ModelConfig, scheme: Scheme, listing: Path, tensors: Mapping[str, TensorInfo]) -> None:
    """Raises ValueError unless the tensors are exactly those of this network under this scheme."""
    expected = {name: size for part in parts(config) for name, size in stored(part, scheme).items()}
    for name, (dtype, shape) in expected.items():
        info = tensors.get(name)
        if info is None:
            raise ValueError(f"{listing}: tensor {name!r} is missing; convert the model again")
        if (info.dtype, info.shape) != (dtype, shape):
            raise ValueError(
                f"{info.file}: tensor {name!r} is {info.dtype} {list(info.shape)}, but {CONFIG} and its "
                f"{FIELD} ({scheme.describe()}) make it {dtype} {list(shape)}"
            )
    for name, info in tensors.items():
        padding = name.startswith(PADDING) and info.dtype == torch.uint8 and info.nbytes < LINE
        if name not in expected and not padding:
            raise ValueError(f"{info.file}: unexpected tensor {name!r}: a packed Qwen3-Next has none such")
        if info.offset % LINE and not padding:
            raise ValueError(
                f"{info.file}: tensor {name!r} begins at byte {info.offset}, not at a multiple of {LINE}; "
                "convert the model again"
            )


def stored(part: Part, scheme: Scheme) -> Sizes:
    """The tensors that hold a part: their names, dtypes and shapes."""
    if part.form == "vector":
        return {part.name: (torch.float32, part.shape)}
    if part.form == "table":
        return {part.name: (getattr(torch, scheme.plain), part.shape)}
    room = empty(part, scheme, "meta")
    sizes: Sizes = {part.name + DATA: (torch.uint8, tuple(room.data.shape))}
    if room.scales.numel():
        sizes[part.name + SCALES] = (torch.bfloat16, tuple(room.scales.shape))
    return sizes


class PackedWriter:
    """Writes the files of a packed checkpoint, the parts as they come."""

    def __init__(self, config: ModelConfig, scheme: Scheme, *, max_shard_bytes: int = 5_000_000_000) -> None:
        scheme.check_rules(part.name for part in parts(config) if part.packed)
        self._scheme = scheme
        self.shards, self.nbytes, filled = [Sizes()], 0, 0
        padding = count()
        for part in parts(config):
            for name, (dtype, shape) in stored(part, scheme).items():
                nbytes = prod(shape) * dtype.itemsize
                if self.shards[-1] and filled + nbytes > max_shard_bytes:
                    self.shards.append({})
                    filled = 0
                self.shards[-1][name] = (dtype, shape)
                # The format allows no holes between tensors, so what is left of a line is a tensor too.
                gap = -nbytes % LINE
                if gap:
                    self.shards[-1][f"{PADDING}{next(padding)}"] = (torch.uint8, (gap,))
                filled, self.nbytes = filled + nbytes + gap, self.nbytes + nbytes + gap

    def write(self, path: Path, items: Iterable[tuple[str, Packed | Tensor]], config: dict[str, Any]) -> None:
        """Everything but companions, into an empty directory; `items` in the order of the layout."""
        blocks, places = self._blocks(items), dict[str, str]()
        for number, shard in enumerate(self.shards, 1):
            several = len(self.shards) > 1
            name = f"model-{number:05}-of-{len(self.shards):05}.safetensors" if several else SINGLE
            write_shard(path / name, shard, islice(blocks, len(shard)), align=LINE)
            places.update(dict.fromkeys(shard, name))
        assert next(blocks, None) is None, "more parts than the layout has"
        if len(self.shards) > 1:
            _write_json(path / INDEX, {"metadata": {"total_size": self.nbytes}, "weight_map": places})
        _write_json(path / CONFIG, {**config, FIELD: self._scheme.to_dict()})

    def _blocks(self, items: Iterable[tuple[str, Packed | Tensor]]) -> Iterator[Tensor]:
        sizes = (entry for shard in self.shards for entry in shard.items())
        for name, item in items:
            tensors = {name: item} if isinstance(item, Tensor) else {name + DATA: item.data}
            if isinstance(item, Packed) and item.scales.numel():
                tensors[name + SCALES] = item.scales
            for each, tensor in tensors.items():
                assert next(sizes) == (each, (tensor.dtype, tuple(tensor.shape))), each
                yield tensor
                gap = -tensor.nbytes % LINE
                if gap:
                    next(sizes)
                    yield torch.zeros(gap, dtype=torch.uint8)


@contextmanager
def new_directory(target: Path, nbytes: int) -> Iterator[Path]:
    """A directory to write about `nbytes` to, which takes the name `target` when all went well; otherwise
    nothing is left. Raises ValueError if there is something, or the disk is full."""
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ValueError(f"{target} exists and is not empty: give a new directory")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if free < nbytes:
            raise ValueError(
                f"{target}: needs {nbytes / 2**30:.1f} GiB, the disk has {free / 2**30:.1f} GiB free"
            )
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as aside:
            yield Path(aside)
            os.chmod(aside, 0o755)  # it was made for its owner alone
            os.rename(aside, target)
    except OSError as error:
        raise ValueError(f"{target}: {error.strerror or error}; nothing was written") from None


def copy_companions(source: Path, target: Path) -> None:
    """Tokenizer and generation files."""
    for name in COMPANIONS:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _write_json(path: Path, table: dict[str, object]) -> None:
    path.write_text(json.dumps(table, indent=2) + "\n", encoding="utf-8")
