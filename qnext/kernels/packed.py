"""A matrix as the CPU kernels read it: blocks of 16 rows, line after line of 64 bytes, each with some columns
of all 16 rows, so that one load feeds 16 sums; with a scale for each row and group of columns.

Made by `model/quant` once, read by `kernels/cpu` in place (also straight from a file). This module is its
definition: `dequantise` says what numbers the bytes mean, and is the twin of every kernel that reads them.
Legend: N rows, K columns, B blocks of 16 rows, L lines, G columns a group.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS = 16  # rows a block
LINE = 64  # bytes a line
BITS = {"int4": 4, "int8": 8, "bfloat16": 16, "float32": 32}
GROUPS = (32, 64, 128)
ZERO = {"int4": 8, "int8": 128}  # what a code of zero is stored as


class Packed(NamedTuple):
    """`data` [..., B, L, 64] bytes, `scales` [..., B, K / G, 16] bf16 (none for floats); `rows`, `columns`
    before they were padded. Leading dimensions are matrices of one shape, such as experts."""

    data: Tensor
    scales: Tensor
    kind: str
    group: int
    rows: int
    columns: int

    @property
    def bits(self) -> int:
        return BITS[self.kind]

    @property
    def width(self) -> int:
        """Columns as stored: whole groups."""
        return self.data.shape[-2] * LINE * 8 // (ROWS * self.bits)

    @property
    def bytes(self) -> int:
        return self.data.numel() + self.scales.numel() * 2


def check(packed: Packed, name: str) -> Packed:
    """The same, if its parts fit together. Raises ValueError naming `name` and the part."""
    data, scales = packed.data, packed.scales
    if packed.kind not in BITS:
        raise ValueError(f"{name}: kind is {packed.kind!r}; use one of {', '.join(BITS)}")
    coded = packed.kind in ZERO
    if coded and packed.group not in GROUPS:
        raise ValueError(f"{name}: group is {packed.group}; use one of {', '.join(map(str, GROUPS))}")
    blocks, width = stored_shape(packed.kind, packed.group, packed.rows, packed.columns)
    lead = tuple(data.shape[:-3])
    wanted = (*lead, blocks, width * ROWS * packed.bits // (8 * LINE), LINE)
    if data.dtype != torch.uint8 or tuple(data.shape) != wanted:
        raise ValueError(f"{name}: data is {data.dtype} {tuple(data.shape)}, wanted uint8 {wanted}")
    wanted = (*lead, blocks, width // packed.group, ROWS) if coded else (0,)
    if scales.dtype != torch.bfloat16 or tuple(scales.shape) != wanted:
        raise ValueError(f"{name}: scales are {scales.dtype} {tuple(scales.shape)}, wanted bfloat16 {wanted}")
    return packed


def stored_shape(kind: str, group: int, rows: int, columns: int) -> tuple[int, int]:
    """Blocks of rows and columns as stored."""
    unit = group if kind in ZERO else ROWS
    return -(-rows // ROWS), -(-columns // unit) * unit


def pack(codes: Tensor, scales: Tensor | None, kind: str, group: int) -> Packed:
    """Codes [..., N, K] (0 to 15 or 0 to 255, zero at `ZERO`) and their scales [..., N, K / G], or floats
    [..., N, K], in blocks. K is whole groups unless the kind is a float."""
    *lead, rows, columns = codes.shape
    blocks, width = stored_shape(kind, group, rows, columns)
    codes = F.pad(codes, (0, width - columns, 0, blocks * ROWS - rows), value=ZERO.get(kind, 0))
    step = LINE * 8 // (ROWS * BITS[kind])  # columns a line
    lines = codes.view(*lead, blocks, ROWS, width // step, step).transpose(-2, -3)  # [.., B, L, 16, step]
    if kind == "int4":
        lines = lines[..., :4] | lines[..., 4:] << 4
    data = lines.contiguous().view(torch.uint8).view(*lead, blocks, width // step, LINE)
    if scales is None:
        return Packed(data, torch.empty(0, dtype=torch.bfloat16), kind, width, rows, columns)
    scales = F.pad(scales.to(torch.bfloat16), (0, width // group - scales.shape[-1], 0, blocks * ROWS - rows))
    scales = scales.view(*lead, blocks, ROWS, -1).transpose(-1, -2).contiguous()
    return Packed(data, scales, kind, group, rows, columns)


def unpack(packed: Packed) -> Tensor:
    """Codes or floats [..., N, K] as `pack` took them."""
    *lead, blocks, lines, _ = packed.data.shape
    if packed.kind == "int4":
        low, high = packed.data & 15, packed.data >> 4
        codes = torch.stack((low, high), -1).view(*lead, blocks, lines, ROWS, 4, 2).transpose(-1, -2)
    elif packed.kind == "int8":
        codes = packed.data
    else:
        codes = packed.data.view(getattr(torch, packed.kind))
    codes = codes.reshape(*lead, blocks, lines, ROWS, -1).transpose(-2, -3)
    return codes.reshape(*lead, blocks * ROWS, -1)[..., : packed.rows, : packed.columns]


def quantise(weight: Tensor, kind: str, group: int = 64) -> Packed:
    """Round a matrix [..., N, K] to the nearest codes; floats are only converted.

    The scale of a group makes its largest number a whole code: of int4, the lowest (-8), where is most room.
    """
    if kind not in ZERO:
        return pack(weight.to(getattr(torch, kind)), None, kind, group)
    zero = ZERO[kind]
    width = stored_shape(kind, group, *weight.shape[-2:])[1]
    groups = F.pad(weight.float(), (0, width - weight.shape[-1])).unflatten(-1, (-1, group))
    top = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scales = (top / -zero if kind == "int4" else top.abs() / 127).to(torch.bfloat16)
    steps = torch.where(scales == 0, 1.0, scales.float())
    codes = (groups / steps).round_().clamp_(-zero, zero - 1).add_(zero).to(torch.uint8)
    packed = pack(codes.flatten(-2), scales.squeeze(-1), kind, group)
    return packed._replace(columns=weight.shape[-1])


def dequantise(packed: Packed) -> Tensor:
    """The numbers that the bytes mean, fp32 [..., N, K]."""
    codes = unpack(packed)
    if packed.kind not in ZERO:
        return codes.float()
    scales = packed.scales.float().transpose(-1, -2).flatten(-3, -2)[..., : packed.rows, :]
    spread = scales.repeat_interleave(packed.group, -1)[..., : packed.columns]
    return (codes.float() - ZERO[packed.kind]) * spread
