"""Rows copied and collected, with their gradients, against plain indexing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qnext.kernels.documents import chunks
from qnext.kernels.rows import collect, spread


def gradient(out: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(out, x, weight)
    return found


@pytest.mark.parametrize("copies", [1, 3])
def test_rows_that_are_spread(copies: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 2, 4, requires_grad=True)
    places = torch.randperm(7 * copies + 4)[: 7 * copies].view(7, copies)
    sources = torch.randint(0, 7, (7 * copies + 4,))  # four rows are nobody's
    weight = torch.zeros(len(sources), 2, 4)
    for t, row in enumerate(places):
        sources[row] = t
        weight[row] = torch.randn(copies, 2, 4)
    found, wanted = spread(x, sources, places), x[sources]
    assert torch.equal(found, wanted)
    torch.testing.assert_close(gradient(found, x, weight), gradient(wanted, x, weight))


def test_rows_that_are_collected() -> None:
    torch.manual_seed(0)
    x, places = torch.randn(9, 3, requires_grad=True), torch.randperm(9)[:5]
    found, wanted, weight = collect(x, places), x[places], torch.randn(5, 3)
    assert torch.equal(found, wanted)
    assert torch.equal(gradient(found, x, weight), gradient(wanted, x, weight))


def test_chunks_lie_turn_by_turn() -> None:
    lengths = (5, 12, 4, 9)
    found = chunks(lengths, torch.device("cpu"), 4)
    starts, total = (0, 5, 17, 21), 30
    wanted = []
    for turn in range(3):
        for n in (1, 3, 0, 2):  # by falling number of chunks, else as they lie
            places = range(4 * turn, min(4 * turn + 4, lengths[n]))
            if places:
                wanted.append([starts[n] + place for place in places] + [total] * (4 - len(places)))
    assert found.rows.tolist() == wanted
    assert found.counts == (4, 3, 2)
    assert found.rows.flatten()[found.order].tolist() == list(range(total))
