"""Block float8: weights stored as e4m3 numbers with one scale for each block of rows and columns.

Read by `checkpoint` (is it stated?), `inventory` (has each weight its scales?) and `weights` (the values).
Invariant: which tensors are quantised is read off the tensors themselves, never off their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .shard import TensorInfo, read_tensor

DTYPE = torch.float8_e4m3fn
SCALE = "_scale_inv"  # a weight's name + this = its scales, to multiply by
SCALE_DTYPES = (torch.float32, torch.bfloat16)


def block_of(file: Path, config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Rows and columns of a block, as `quantization_config` in `file` states them; None for plain weights.

    Raises ValueError if anything but block float8 is stated.
    """
    stated = config.get("quantization_config")
    if stated is None:
        return None
    field = f"{file}: quantization_config"
    if not isinstance(stated, dict):
        raise ValueError(f"{field} is {stated!r}, expected a table")
    method, fmt = stated.get("quant_method"), stated.get("fmt", "e4m3")
    if method != "fp8":
        raise ValueError(
            f"{field}.quant_method is {method!r}, supported are 'fp8' (in blocks), plain weights, and what "
            "`qnext convert --quantize` makes of these"
        )
    if fmt != "e4m3":
        raise ValueError(f"{field}.fmt is {fmt!r}, supported is 'e4m3'")
    block = stated.get("weight_block_size")
    if not isinstance(block, list) or len(block) != 2 or not all(type(n) is int and n > 0 for n in block):
        raise ValueError(f"{field}.weight_block_size is {block!r}, expected two sizes such as [128, 128]")
    return block[0], block[1]


def check_stated(file: Path, block: tuple[int, int] | None, tensors: Mapping[str, TensorInfo]) -> None:
    """Raises ValueError if there are float8 tensors that `file` does not state, or the reverse."""
    quantised = next((name for name, info in tensors.items() if info.dtype == DTYPE), None)
    if quantised is None and block is not None:
        raise ValueError(
            f"{file}: quantization_config says fp8, but no tensor is float8; remove it from plain weights"
        )
    if quantised is not None and block is None:
        raise ValueError(
            f"{tensors[quantised].file}: tensor {quantised!r} is float8, "
            f"but {file} has no quantization_config"
        )


def check_scale(name: str, weight: TensorInfo, scale: TensorInfo | None, block: tuple[int, int]) -> None:
    """Raises ValueError unless `scale` is fit for the float8 tensor `name`."""
    if len(weight.shape) != 2:
        raise ValueError(
            f"{weight.file}: tensor {name!r} is float8 of shape {list(weight.shape)}, only matrices can be"
        )
    if scale is None:
        raise ValueError(
            f"{weight.file}: tensor {name!r} is float8, but its scales {name + SCALE!r} are missing"
        )
    if scale.dtype not in SCALE_DTYPES:
        raise ValueError(
            f"{scale.file}: tensor {name + SCALE!r} is {scale.dtype}, expected float32 or bfloat16"
        )
    expected = tuple(-(-size // by) for size, by in zip(weight.shape, block, strict=True))
    if scale.shape != expected:
        raise ValueError(
            f"{scale.file}: tensor {name + SCALE!r} has shape {list(scale.shape)}, "
            f"expected {list(expected)}: a scale for each block of {block[0]} x {block[1]}"
        )


@dataclass(frozen=True)
class Scale:
    """The scales of one weight [R, C], float32, one for each block of (height, width)."""

    values: Tensor
    block: tuple[int, int]

    @classmethod
    def read(cls, name: str, info: TensorInfo, block: tuple[int, int]) -> Scale:
        """The scales of weight `name`. Raises ValueError if one is not a finite number of 0 or more."""
        values = read_tensor(info).float()
        if not bool((values.isfinite() & (values >= 0)).all()):
            raise ValueError(
                f"{info.file}: tensor {name + SCALE!r} has a scale that is not a finite number >= 0"
            )
        return cls(values, block)

    def apply(self, rows: Tensor, first: int) -> Tensor:
        """float32 values of `rows` [n, C] of the weight, the first of which is its row `first`."""
        height, width = self.block
        of_row = self.values[torch.arange(first, first + len(rows)) // height]
        return rows.float().mul_(of_row.repeat_interleave(width, 1)[:, : rows.shape[1]])
