"""Products of codes in pairs (AVX2) against those in fours, to the bit, at the ends of both ranges too."""

from __future__ import annotations

from functools import cache
from typing import Any

import numba
import pytest
import torch

from qnext.kernels.cpu import dot, isa, pairs
from qnext.kernels.cpu.inputs import Inputs
from qnext.kernels.cpu.linear import Matrix
from qnext.kernels.cpu.workspace import Workspace
from qnext.kernels.packed import quantise

pytestmark = pytest.mark.skipif(
    not isa.features().issuperset(isa.NEEDED["avx2"]), reason="a machine without AVX2"
)


@cache
def both(bits: int, tokens: int, wide: int) -> Any:
    """A block, or `wide` ones so many `apart`, in pairs and in fours."""
    in_pairs, in_fours = pairs.codes(bits, tokens, wide), dot.codes(bits, tokens, wide)

    @numba.njit
    def run(matrix, block, apart, x, ours, theirs, step):  # type: ignore[no-untyped-def]
        in_pairs(matrix, block, apart, x, 0, ours, step)
        in_fours(matrix, block, apart, x, 0, theirs, step)

    return run


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
            at = [each.data_ptr() for each in (*ours, *theirs)]
            for block in range(weight.blocks):
                here = at[0] + 64 * block, at[2] + 64 * block, 64 * weight.blocks
                both(weight.bits, tokens, 1)(weight.address, block, 0, inputs.by_codes, *here)
            assert theirs[0].isfinite().all() and torch.equal(ours[0], theirs[0])
            if tokens == 1:
                for block in range(2):  # every second one side by side
                    here = at[1] + 64 * block, at[3] + 64 * block, 0
                    both(weight.bits, 1, 4)(weight.address, block, 2, inputs.by_codes, *here)
                assert torch.equal(ours[1], theirs[0]) and torch.equal(theirs[1], theirs[0])
