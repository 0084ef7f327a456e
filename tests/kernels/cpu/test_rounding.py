"""Rounding weights: byte for byte the definition, and with importance the least cost of all scales tried."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qnext.kernels.cpu.rounding import CLIPS, round_into
from qnext.kernels.packed import ROWS, Packed, dequantise, quantise


def room(kind: str, group: int, count: int, rows: int, columns: int) -> Packed:
    packed = quantise(torch.zeros(count, rows, columns), kind, group)
    return packed._replace(
        data=torch.full_like(packed.data, 99), scales=torch.full_like(packed.scales, torch.nan)
    )


def table(count: int, rows: int) -> Tensor:
    padded = torch.full((count, -(-rows // ROWS) * ROWS), -1)
    padded[:, :rows] = torch.arange(count * rows).view(count, rows)
    return padded.flatten()


def weights(count: int, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(count, rows, columns, generator=generator) * 0.02
    drawn[0, 1] = 0
    drawn[0, 2, ::2] = drawn[0, 2, 1::2] * -1  # of one size, on both sides
    return drawn.to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("kind", ["int4", "int8"])
@pytest.mark.parametrize(("group", "columns"), [(32, 96), (64, 130), (128, 20)])
def test_nearest_codes_are_the_definitions(dtype: torch.dtype, kind: str, group: int, columns: int) -> None:
    floats = weights(2, 35, columns, dtype)
    packed = room(kind, group, 2, 35, columns)
    round_into(packed, floats.flatten(0, 1), table(2, 35))
    expected = quantise(floats, kind, group)
    assert torch.equal(packed.data, expected.data) and torch.equal(packed.scales, expected.scales)


def cost(packed: Packed, floats: Tensor, importance: Tensor) -> Tensor:
    """By row and group."""
    misses = (dequantise(packed) - floats.float()).square() * importance[:, None]
    return misses.unflatten(-1, (-1, packed.group)).sum(-1)


def test_importance_lowers_every_groups_cost() -> None:
    floats, group = weights(3, 16, 128, torch.bfloat16), 32
    importance = torch.rand(3, 128, generator=torch.Generator().manual_seed(1)).square() + 1e-3
    packed = room("int4", group, 3, 16, 128)
    round_into(packed, floats.flatten(0, 1), table(3, 16), importance)
    found = cost(packed, floats, importance)
    groups = floats.float().unflatten(-1, (-1, group))
    top = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    for clip in CLIPS:
        for side in (-8, 7):
            scales = (top / (side / clip)).bfloat16().float()
            steps = torch.where(scales == 0, 1.0, scales)
            codes = (groups / steps).round().clamp(-8, 7)
            costs = importance.view(3, 1, -1, group)
            tried = ((groups - codes * scales).square() * costs).sum(-1)
            assert (found <= tried * (1 + 1e-4) + 1e-12).all()
    assert found.sum() < 0.9 * cost(quantise(floats, "int4", group), floats, importance).sum()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("weighed", [False, True])
def test_what_is_no_number_shows(value: float, weighed: bool) -> None:
    floats = weights(1, 16, 64, torch.float32)
    floats[0, 5, 7] = value
    packed = room("int4", 32, 1, 16, 64)
    round_into(packed, floats[0], table(1, 16), torch.ones(1, 64) if weighed else None)
    bad = packed.scales[0, 0].isnan()
    assert bad[0, 5] and bad.sum() == 1
