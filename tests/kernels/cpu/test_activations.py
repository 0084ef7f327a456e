"""Exponentials on vectors against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from qnext.kernels.cpu import activations, simd
from qnext.kernels.cpu.jit import kernel


@kernel()
def applied(which: int, x: int, out: int, blocks: int) -> None:
    for i in range(blocks):
        value = simd.load(x + 64 * i)
        if which == 0:
            value = activations.exp(value)
        elif which == 1:
            value = activations.sigmoid(value)
        elif which == 2:
            value = activations.silu(value)
        else:
            value = activations.softplus(value)
        simd.store(out + 64 * i, value)


TWINS: dict[str, Callable[[Any], Any]] = {
    "exp": np.exp,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "softplus": lambda x: np.logaddexp(x, 0),
}


def compute(name: str, x: np.ndarray) -> np.ndarray:
    out = np.full_like(x, np.nan)
    applied([*TWINS].index(name), x.ctypes.data, out.ctypes.data, len(x) // 16)
    return out


@pytest.mark.parametrize("name", TWINS)
def test_equals_float64(name: str) -> None:
    points = np.concatenate([np.linspace(-87, 87.9, 160_000), np.geomspace(1e-30, 1, 8000) * -1])
    x = points.astype(np.float32)
    wanted = TWINS[name](x.astype(np.float64))
    normal = np.abs(wanted) > 1.2e-38
    found = compute(name, x)
    assert np.max(np.abs(found - wanted)[normal] / np.abs(wanted)[normal]) < 4e-7
    assert np.all(np.abs(found[~normal]) < 1.2e-38)


def test_the_ends() -> None:
    x = np.array([-np.inf, -1e30, -88, 88, 1e30, np.inf, np.nan, 0] * 2, np.float32)
    most = np.exp(88)
    exps = compute("exp", x)[:8]
    np.testing.assert_allclose(exps, [0, 0, 0, most, most, most, np.nan, 1], rtol=1e-6)
    np.testing.assert_allclose(compute("sigmoid", x)[:8], [0, 0, 0, 1, 1, 1, np.nan, 0.5], atol=1e-37)
    np.testing.assert_allclose(compute("softplus", x)[4:7], [1e30, np.inf, np.nan], rtol=1e-6)
