"""Products in tiles against products in vectors, to the bit, where there is a unit, be it in software."""

from __future__ import annotations

import pytest
import torch

from qnext.kernels.cpu import tiles, unit
from qnext.kernels.cpu.dot import codes
from qnext.kernels.cpu.inputs import Inputs
from qnext.kernels.cpu.jit import kernel
from qnext.kernels.cpu.linear import Matrix
from qnext.kernels.cpu.workspace import Workspace
from qnext.kernels.packed import quantise

one_of_4, one_of_8 = codes(4, 1, 1), codes(8, 1, 1)


@kernel()
def in_tiles(bits, matrix, blocks, x, first, last, out, step, desk):  # type: ignore[no-untyped-def]
    left = 0
    unit.take_unit(desk)
    for block in range(blocks):
        at = out + 64 * block
        if bits == 4:
            left = tiles.tiles(4, matrix, block, x, first, last, at, step, desk)
        else:
            left = tiles.tiles(8, matrix, block, x, first, last, at, step, desk)
    unit.leave_unit(desk)
    return left


@kernel()
def in_vectors(bits, matrix, blocks, x, last, out, step):  # type: ignore[no-untyped-def]
    for block in range(blocks):
        for t in range(last):
            if bits == 4:
                one_of_4(matrix, block, 0, x, t, out + 64 * block + t * step, step)
            else:
                one_of_8(matrix, block, 0, x, t, out + 64 * block + t * step, step)


def padded(inputs: Inputs) -> list[torch.Tensor]:
    """Codes, scales and sums where rows after the last may be read, though this machine may do without."""
    rows = [each for each in (inputs.codes, inputs.scales, inputs.sums) if each is not None]
    return [torch.cat([each, each.new_full((unit.SIDE, each.shape[1]), 99)]) for each in rows]


with_unit = pytest.mark.skipif(not unit.UNIT, reason="there is no matrix unit")


@with_unit
@pytest.mark.parametrize("kind", ["int4", "int8"])
@pytest.mark.parametrize(("group", "columns"), [(64, 64), (64, 320), (64, 2112), (128, 384)])
@pytest.mark.parametrize("tokens", [5, 16, 20, 31, 83])
def test_equal_to_vectors(kind: str, group: int, columns: int, tokens: int) -> None:
    weight, workspace = Matrix(quantise(torch.randn(48, columns), kind, group)), Workspace()
    rows = padded(Inputs(torch.randn(tokens, columns), columns, group, workspace).made())
    x = columns, *(each.data_ptr() for each in rows)
    want, found = torch.empty(tokens, 48), torch.full((tokens, 48), 7.0)
    in_vectors(weight.bits, weight.address, weight.blocks, x, tokens, want.data_ptr(), 4 * 48)
    desk, first = workspace.address("desk", tiles.DESK), tokens % 16 // 3 if tokens > 5 else 0
    at = found.data_ptr() + 4 * 48 * first
    left = in_tiles(weight.bits, weight.address, weight.blocks, x, first, tokens, at, 4 * 48, desk)
    rest = (tokens - first) % 16
    assert left == tokens - (rest if rest < tiles.FEWEST else 0)
    assert torch.equal(found[first:left], want[first:left])
    assert (found[:first] == 7).all() and (found[left:] == 7).all()


@with_unit
def test_shorter_groups_and_fewer_tokens_are_left_to_vectors() -> None:
    for group, tokens in ((32, 40), (64, tiles.FEWEST - 1)):
        weight = Matrix(quantise(torch.randn(16, 64), "int4", group))
        inputs = Inputs(torch.randn(tokens, 64), 64, group, Workspace()).made()
        assert in_tiles(4, weight.address, 1, inputs.by_codes, 0, tokens, 0, 0, 0) == 0
