"""Rotation of the leading dimensions of a head against plain trigonometry."""

from __future__ import annotations

import math

import pytest
import torch

from qnext.kernels.reference import rotate

from .twins import distance


@pytest.mark.parametrize("half,width", [(1, 2), (2, 4), (2, 7), (3, 20)])
def test_pairs_dimension_i_with_i_plus_half(half: int, width: int) -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, width, generator=rng)
    angles = torch.rand(5, half, generator=rng) * 6
    found = rotate(x, angles.cos(), angles.sin())
    wanted = x.double().clone()
    for t in range(5):
        for head in range(3):
            for i in range(half):
                turn = complex(math.cos(angles[t, i]), math.sin(angles[t, i]))
                z = complex(x[t, head, i], x[t, head, i + half]) * turn
                wanted[t, head, i], wanted[t, head, i + half] = z.real, z.imag
    assert distance(found, wanted) < 1e-6
    assert found[..., 2 * half :].equal(x[..., 2 * half :])


def test_keeps_the_dtype_and_computes_in_single() -> None:
    rng = torch.Generator().manual_seed(0)
    x, angles = torch.randn(4, 2, 8, generator=rng).bfloat16(), torch.rand(4, 2, generator=rng)
    found = rotate(x, angles.cos(), angles.sin())
    assert found.dtype == torch.bfloat16
    assert found.equal(rotate(x.float(), angles.cos(), angles.sin()).bfloat16())
