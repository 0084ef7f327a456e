"""A shard: one safetensors file, read and written with plain file calls.

Used by `checkpoint` (headers) and `weights` (data). Invariant: the tensors that `read_header` returns cover
the whole file, byte for byte. Files are not mapped into memory, so that reading a checkpoint costs no more
memory than the weights it fills.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

DTYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
}
PACKED_DTYPES = {**DTYPES, "U8": torch.uint8}  # a packed checkpoint also holds bytes
_NAMES = {dtype: name for name, dtype in PACKED_DTYPES.items()}
BLOCK = 4 << 20  # bytes moved at a time
_MAX_HEADER = 100_000_000  # the format's own bound, in bytes


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a stored tensor lies: `offset` is its first byte in `file`."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


def read_header(path: Path, dtypes: Mapping[str, torch.dtype] = DTYPES) -> dict[str, TensorInfo]:
    """The tensors of a shard, which may have these `dtypes`. Raises ValueError, naming the file and the
    tensor, on anything out of order."""
    size = path.stat().st_size
    if size < 8:
        raise ValueError(f"{path}: {size} bytes are no safetensors file; download it again")
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, _MAX_HEADER):
            raise ValueError(
                f"{path}: not a safetensors file, or cut short: a header of {length} bytes in {size} bytes"
            )
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a safetensors file: its header is no JSON ({error})") from None
    if not isinstance(header, dict):
        raise ValueError(f"{path}: not a safetensors file: its header is no JSON object")
    header.pop("__metadata__", None)
    start = 8 + length
    tensors = {name: _entry(path, name, entry, start, dtypes) for name, entry in header.items()}
    end = start
    for name, info in sorted(tensors.items(), key=lambda item: item[1].offset):
        if info.offset != end:
            fault = "overlaps the tensor before it" if info.offset < end else "leaves a hole before it"
            raise ValueError(
                f"{path}: tensor {name!r} begins at byte {info.offset}, expected {end}: it {fault}"
            )
        end += info.nbytes
        if end > size:
            raise ValueError(f"{path}: cut short: tensor {name!r} ends at byte {end}, the file at {size}")
    if end < size:
        raise ValueError(f"{path}: {size - end} bytes after the last tensor belong to none")
    return tensors


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands twice")
    return table


def _entry(path: Path, name: str, entry: Any, start: int, dtypes: Mapping[str, torch.dtype]) -> TensorInfo:
    def is_size(value: Any) -> bool:
        return type(value) is int and value >= 0

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(
            f"{path}: tensor {name!r} is described by {entry!r}, not by dtype, shape and data_offsets"
        )
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in dtypes:
        raise ValueError(f"{path}: tensor {name!r} has dtype {dtype!r}, supported are {', '.join(dtypes)}")
    if not isinstance(shape, list) or not all(map(is_size, shape)):
        raise ValueError(f"{path}: tensor {name!r} has shape {shape!r}, expected a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(is_size, offsets)):
        raise ValueError(f"{path}: tensor {name!r} has data_offsets {offsets!r}, expected two byte positions")
    info = TensorInfo(path, dtypes[dtype], tuple(shape), start + offsets[0])
    if offsets[1] - offsets[0] != info.nbytes:
        raise ValueError(
            f"{path}: tensor {name!r} has data_offsets {offsets}, {offsets[1] - offsets[0]} bytes, "
            f"but {dtype} of shape {shape} takes {info.nbytes}"
        )
    return info


def read_into(file: FileIO, offset: int, target: Tensor) -> None:
    """Fill a contiguous CPU tensor with the bytes at `offset` of an unbuffered file."""
    file.seek(offset)
    view = _bytes(target).numpy().data
    while view:
        count = file.readinto(view)
        if not count:
            raise ValueError(f"{file.name}: ends {len(view)} bytes too early: it changed while it was read")
        view = view[count:]


def read_tensor(info: TensorInfo) -> Tensor:
    """One whole tensor, for small ones."""
    tensor = torch.empty(info.shape, dtype=info.dtype)
    with open(info.file, "rb", buffering=0) as file:
        read_into(file, info.offset, tensor)
    return tensor


def same_data(one: TensorInfo, other: TensorInfo) -> bool:
    """Whether two stored tensors are equal bit for bit."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with open(one.file, "rb") as left, open(other.file, "rb") as right:
        left.seek(one.offset)
        right.seek(other.offset)
        sizes = (min(BLOCK, one.nbytes - start) for start in range(0, one.nbytes, BLOCK))
        return all(left.read(size) == right.read(size) for size in sizes)


def write_shard(
    path: Path,
    tensors: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    blocks: Iterable[Tensor],
    *,
    align: int = 8,
) -> None:
    """Write a shard; `blocks` are the data of `tensors`, in that order, in contiguous pieces of any size. The
    first begins at a multiple of `align` bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % align)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for block in blocks:
            file.write(_bytes(block.cpu()).numpy().data)
        assert file.tell() == 8 + len(text) + end, "blocks and header differ"
        file.flush()
        os.fsync(file.fileno())


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.view(-1).view(torch.uint8)
