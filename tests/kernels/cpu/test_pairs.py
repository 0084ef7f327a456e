"""Products of codes in pairs (AVX2) against those in fours, to the bit, at the ends of both ranges too."""

from __future__ import annotations

import pytest
import torch

from qnext.kernels.cpu import dot, isa, pairs
from qnext.kernels.cpu.inputs import Inputs
from qnext.kernels.cpu.jit import kernel
from qnext.kernels.cpu.linear import Matrix
from qnext.kernels.cpu.workspace import Workspace
from qnext.kernels.packed import quantise

pytestmark = pytest.mark.skipif(
    not isa.features().issuperset(isa.NEEDED["avx2"]), reason="a machine without AVX2"
)


@kernel()
def one_token(bits, matrix, x, ours, theirs):  # type: ignore[no-untyped-def]
    """By every second block side by side, and one by one."""
    for b in range(2):
        if bits == 4:
            pairs.codes(4, 1, 4, matrix, b, 2, x, 0, ours + 64 * b, 0)
            dot.codes(4, 1, 4, matrix, b, 2, x, 0, theirs + 64 * b, 0)
        else:
            pairs.codes(8, 1, 4, matrix, b, 2, x, 0, ours + 64 * b, 0)
            dot.codes(8, 1, 4, matrix, b, 2, x, 0, theirs + 64 * b, 0)


@kernel()
def one_by_one(bits, matrix, blocks, x, tokens, ours, theirs):  # type: ignore[no-untyped-def]
    step = 64 * blocks
    for b in range(blocks):
        at = 64 * b
        if bits == 4 and tokens == 1:
            pairs.codes(4, 1, 1, matrix, b, 0, x, 0, ours + at, step)
            dot.codes(4, 1, 1, matrix, b, 0, x, 0, theirs + at, step)
        elif bits == 4:
            pairs.codes(4, 4, 1, matrix, b, 0, x, 0, ours + at, step)
            dot.codes(4, 4, 1, matrix, b, 0, x, 0, theirs + at, step)
        elif tokens == 1:
            pairs.codes(8, 1, 1, matrix, b, 0, x, 0, ours + at, step)
            dot.codes(8, 1, 1, matrix, b, 0, x, 0, theirs + at, step)
        else:
            pairs.codes(8, 4, 1, matrix, b, 0, x, 0, ours + at, step)
            dot.codes(8, 4, 1, matrix, b, 0, x, 0, theirs + at, step)


@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_equal_to_fours(kind: str, group: int, tokens: int) -> None:
    packed = quantise(torch.randn(128, 384), kind, group)
    ends = torch.randint(256, packed.data.shape, dtype=torch.uint8)
    ends[..., ::3, :], ends[..., 1::3, :] = 0, 255
    for data in (packed.data, ends.view(packed.data.dtype)):
        weight = Matrix(packed._replace(data=data.contiguous()))
        inputs = Inputs(torch.randn(tokens, 384), 384, group, Workspace()).made()
        for rounded in (None, 127, -127):
            if rounded:
                assert inputs.codes is not None and inputs.sums is not None
                inputs.codes.fill_(rounded)
                inputs.sums.fill_(rounded * group)
            ours, theirs = torch.empty(2, tokens, 128), torch.empty(2, tokens, 128)
            given, places = (weight.bits, weight.address), (ours[0].data_ptr(), theirs[0].data_ptr())
            one_by_one(*given, weight.blocks, inputs.by_codes, tokens, *places)
            assert theirs[0].isfinite().all() and torch.equal(ours[0], theirs[0])
            if tokens == 1:
                one_token(*given, inputs.by_codes, ours[1].data_ptr(), theirs[1].data_ptr())
                assert torch.equal(ours[1], theirs[0]) and torch.equal(theirs[1], theirs[0])
