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
def both(bits, matrix, x, tokens, ours, theirs):  # type: ignore[no-untyped-def]
    if bits == 4 and tokens == 1:
        pairs.codes(4, 1, matrix, 0, x, 0, ours, 64)
        dot.codes(4, 1, matrix, 0, x, 0, theirs, 64)
    elif bits == 4:
        pairs.codes(4, 4, matrix, 0, x, 0, ours, 64)
        dot.codes(4, 4, matrix, 0, x, 0, theirs, 64)
    elif tokens == 1:
        pairs.codes(8, 1, matrix, 0, x, 0, ours, 64)
        dot.codes(8, 1, matrix, 0, x, 0, theirs, 64)
    else:
        pairs.codes(8, 4, matrix, 0, x, 0, ours, 64)
        dot.codes(8, 4, matrix, 0, x, 0, theirs, 64)


@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_equal_to_fours(kind: str, group: int, tokens: int) -> None:
    packed = quantise(torch.randn(16, 384), kind, group)
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
            ours, theirs = torch.empty(tokens, 16), torch.empty(tokens, 16)
            both(weight.bits, weight.address, inputs.by_codes, tokens, ours.data_ptr(), theirs.data_ptr())
            assert theirs.isfinite().all() and torch.equal(ours, theirs)
