"""Packed matrices: every number is where `unpack` finds it, rounding is the nearest, odd sizes are padded."""

from __future__ import annotations

import pytest
import torch

from qnext.kernels.packed import BITS, GROUPS, ZERO, check, dequantise, pack, quantise, unpack

SHAPES = [(16, 64), (3, 33, 100), (2, 5, 7, 64), (1, 1), (40, 256)]


@pytest.mark.parametrize("kind", BITS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("group", GROUPS)
def test_codes_come_back(kind: str, shape: tuple[int, ...], group: int) -> None:
    packed = check(quantise(torch.randn(shape), kind, group), "w")
    found = dequantise(packed)
    assert found.shape == shape
    if kind in ZERO:
        assert packed.width % group == 0
        scales = packed.scales.transpose(-1, -2).flatten(-3, -2)[..., : packed.rows, :]
        again = pack(unpack(packed._replace(columns=packed.width)), scales, kind, group)
        assert torch.equal(again.data, packed.data) and torch.equal(again.scales, packed.scales)


@pytest.mark.parametrize(("kind", "most"), [("int4", 0.12), ("int8", 0.008), ("bfloat16", 0.002)])
def test_rounding_is_near(kind: str, most: float) -> None:
    weight = torch.randn(64, 256)
    error = (dequantise(quantise(weight, kind, 64)) - weight).norm() / weight.norm()
    assert 0 < error < most


def test_float32_is_exact() -> None:
    weight = torch.randn(3, 20, 70)
    assert torch.equal(dequantise(quantise(weight, "float32", 64)), weight)


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_no_code_is_nearer(kind: str) -> None:
    weight = torch.randn(16, 64)
    packed = quantise(weight, kind, 64)
    step = packed.scales.float().squeeze().abs()[:, None]
    inside = unpack(packed) < 2 * ZERO[kind] - 1  # where there is a next code
    error = (dequantise(packed) - weight).abs()
    assert (error[inside] <= step.expand_as(error)[inside] * 0.5001).all()


def test_zeros_stay_zeros() -> None:
    for kind in BITS:
        assert torch.equal(dequantise(quantise(torch.zeros(17, 65), kind, 32)), torch.zeros(17, 65))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"kind": "int3"}, "kind"),
        ({"group": 48}, "group"),
        ({"rows": 99}, "data"),
        ({"columns": 999}, "data"),
        ({"scales": torch.zeros(1, dtype=torch.bfloat16)}, "scales"),
        ({"data": torch.zeros(4, dtype=torch.uint8)}, "data"),
    ],
)
def test_parts_that_do_not_fit_are_named(change: dict[str, object], word: str) -> None:
    packed = quantise(torch.randn(32, 128), "int4", 64)
    with pytest.raises(ValueError, match=f"layer.w: {word}"):
        check(packed._replace(**change), "layer.w")  # type: ignore[arg-type]
