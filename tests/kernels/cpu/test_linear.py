"""Products of packed matrices against the numbers that the bytes mean; rows alone against rows together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qnext.kernels.cpu.inputs import Inputs
from qnext.kernels.cpu.linear import Matrix, linear, normalise
from qnext.kernels.cpu.workspace import Workspace
from qnext.kernels.packed import BITS, ZERO, dequantise, quantise

SHAPES = (  # rows, columns, tokens, group; the last three in tiles, where there are such
    (48, 96, 1, 32),
    (33, 256, 7, 32),
    (80, 160, 15, 32),
    (176, 96, 1, 32),  # several blocks side by side, and some more
    (112, 96, 2, 32),
    (16, 64, 300, 32),
    (33, 128, 277, 64),
    (16, 2112, 21, 64),
    (48, 640, 6, 128),
)
CASES = [(kind, coded) for kind in BITS for coded in ((False, True) if kind in ZERO else (False,))]


def normed(x: Tensor, weight: Tensor) -> Tensor:
    x = x.double()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * (1 + weight.double())


@pytest.mark.parametrize(("kind", "coded"), CASES)
def test_product(kind: str, coded: bool) -> None:
    for rows, columns, tokens, group in SHAPES:
        packed, workspace = quantise(torch.randn(rows, columns), kind, group), Workspace()
        x, weight = torch.randn(tokens, columns), torch.randn(columns) / 10
        group = group if coded else 0
        inputs = Inputs(x, packed.width, group, workspace, norm=weight, eps=1e-6)
        out = torch.full((tokens, 16 * packed.data.shape[0]), float("nan"))
        add = torch.randn(out.shape)
        linear(inputs, Matrix(packed), out, add=add)
        want = normed(x, weight) @ dequantise(packed).double().T
        error = ((out - add)[:, :rows] - want).norm() / want.norm()
        assert error < (2e-2 if coded else 2e-6)
        row = linear(
            Inputs(x[-1:], packed.width, group, Workspace(), norm=weight, eps=1e-6),
            Matrix(packed),
            torch.empty(1, out.shape[1]),
            add=add[-1:],
        )
        assert torch.equal(row[0], out[-1])


def test_codes_of_inputs_are_the_nearest() -> None:
    x = torch.randn(5, 128) * torch.tensor([[1e-3], [1], [50], [0], [7]])
    inputs = Inputs(x, 128, 64, Workspace()).made()
    assert inputs.scales is not None and inputs.sums is not None and inputs.codes is not None
    scales = x.unflatten(1, (2, 64)).abs().amax(-1) / 127
    assert torch.allclose(inputs.scales, scales, rtol=1e-6)
    assert torch.equal(inputs.sums, inputs.codes.unflatten(1, (2, 64)).sum(-1, dtype=torch.int32))
    back = inputs.codes.unflatten(1, (2, 64)) * inputs.scales[..., None]
    assert ((back.flatten(1) - x).abs() <= 0.5001 * scales.repeat_interleave(64, 1) + 1e-12).all()


def test_a_bias_goes_to_every_row() -> None:
    weight, x, bias = Matrix(quantise(torch.randn(16, 64), "float32")), torch.randn(3, 64), torch.randn(16)
    inputs = Inputs(x, 64, 0, Workspace())
    with_bias = linear(inputs, weight, torch.empty(3, 16), add=bias)
    assert torch.equal(with_bias, linear(inputs, weight, torch.empty(3, 16)) + bias)


def test_norm() -> None:
    x, weight = torch.randn(5, 3 * 48)[:, 48:96], torch.randn(48) / 10
    out = torch.zeros(5, 64)
    normalise(x, weight, 1e-6, out[:, 8:56], Workspace())
    assert torch.allclose(out[:, 8:56].double(), normed(x, weight), rtol=1e-5)
    assert not out[:, :8].any() and not out[:, 56:].any()
