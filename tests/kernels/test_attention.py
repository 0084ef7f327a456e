"""Grouped-query attention over paged caches against a softmax written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qnext.kernels.reference import attention
from qnext.model.packing import Packing

from . import twins
from .twins import distance, paged_row, row_pages

pytestmark = pytest.mark.usefixtures("poisoned_memory")

WIDTH, SCALE = 6, 0.37
ROWS = [
    ((1,), (0,)),
    ((1, 1, 1), (0, 7, 40)),
    ((9, 1, 30), (0, 0, 0)),
    ((5, 17, 1, 33), (12, 0, 16, 31)),
]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def heads(total: int, queries: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    return (
        random(total, queries, WIDTH) * 2,
        random(total, groups, WIDTH, seed=1) * 2,
        random(total, groups, WIDTH, seed=2),
    )


@pytest.mark.parametrize("lengths", [(1,), (2, 1, 3), (40, 1, 7)], ids=str)
@pytest.mark.parametrize("shape", [(4, 4), (4, 2), (6, 1)], ids=str)
def test_equals_the_softmax(shape: tuple[int, int], lengths: tuple[int, ...]) -> None:
    q, k, v = heads(sum(lengths), *shape)
    wanted = torch.cat(
        [
            twins.attention(*parts, SCALE)
            for parts in zip(*(x.double().split(lengths) for x in (q, k, v)), strict=True)
        ]
    )
    assert distance(attention(q, k, v, Packing.of(lengths), None, SCALE), wanted) < 2e-6


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("lengths,contexts", ROWS, ids=str)
def test_reads_earlier_keys_from_disordered_pages(
    lengths: tuple[int, ...], contexts: tuple[int, ...], page_size: int
) -> None:
    """Unused cells hold NaN: before the run all but the earlier tokens', after it all but the sequences'."""
    row = paged_row(lengths, contexts, page_size)
    cache = tuple(
        torch.full((row_pages(lengths, contexts, page_size), page_size, 2, WIDTH), float("nan"))
        for _ in range(2)
    )
    assert row.pages is not None and row.cells is not None
    q, k, v = heads(sum(lengths), 4, 2)
    wanted, used = [], set(row.cells.tolist())
    for n, (start, length, context) in enumerate(zip(row.starts, lengths, contexts, strict=True)):
        cells = [int(row.pages[n, i // page_size]) * page_size + i % page_size for i in range(context)]
        used.update(cells)
        sides = []
        for stored, fresh, seed in zip(cache, (k, v), (10, 20), strict=True):
            old = random(context, 2, WIDTH, seed=seed + n)
            stored.view(-1, 2, WIDTH)[cells] = old
            sides.append(torch.cat((old, fresh[start : start + length])).double())
        wanted.append(twins.attention(q[start : start + length].double(), *sides, SCALE))
    found = attention(q, k, v, row, (cache[0], cache[1]), SCALE)
    assert distance(found, torch.cat(wanted)) < 2e-6
    for stored, fresh in zip(cache, (k, v), strict=True):
        flat = stored.view(-1, 2, WIDTH)
        assert flat[row.cells].equal(fresh)
        assert flat[sorted(set(range(len(flat))) - used)].isnan().all()


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(1, 9))
def test_pieces_of_any_size_give_the_whole(pieces: list[int], page_size: int) -> None:
    total = sum(pieces)
    q, k, v = heads(total, 4, 2)
    wanted = attention(q, k, v, Packing.of([total]), None, SCALE)
    pages = torch.randperm(-(-total // page_size), generator=torch.Generator().manual_seed(5)).tolist()
    cache = tuple(torch.full((len(pages), page_size, 2, WIDTH), float("nan")) for _ in range(2))
    outs, at = [], 0
    for length in pieces:
        row = Packing.cached([length], [at], [pages], [0], page_size)
        part = slice(at, at + length)
        outs.append(attention(q[part], k[part], v[part], row, (cache[0], cache[1]), SCALE))
        at += length
    assert distance(torch.cat(outs), wanted) < 2e-6


def test_gradients_equal_those_of_the_softmax() -> None:
    lengths = (9, 1, 20)
    fast = [x.requires_grad_() for x in heads(30, 4, 2)]
    slow = [x.detach().double().requires_grad_() for x in fast]
    scale = random(30, 4, WIDTH, seed=3)
    (attention(*fast, Packing.of(lengths), None, SCALE) * scale).sum().backward()
    parts = zip(*(x.split(lengths) for x in slow), strict=True)
    (torch.cat([twins.attention(*part, SCALE) for part in parts]) * scale).sum().backward()
    for a, b in zip(fast, slow, strict=True):
        assert a.grad is not None and b.grad is not None
        assert distance(a.grad, b.grad) < 5e-6


def test_a_cache_of_another_dtype_rounds_what_it_keeps() -> None:
    row = paged_row([3], [0], 4)
    cache = (torch.zeros(row_pages([3], [0], 4), 4, 2, WIDTH, dtype=torch.bfloat16),) * 2
    q, k, v = heads(3, 4, 2)
    assert attention(q, k, v, row, cache, SCALE).dtype == torch.float32
    assert row.cells is not None
    assert cache[1].view(-1, 2, WIDTH)[row.cells].equal(v.bfloat16())


@pytest.mark.parametrize("first", [1, 2, 5])
@pytest.mark.parametrize("lengths", [(1, 1), (4, 1, 9), (3, 30)], ids=str)
def test_the_first_cells_are_not_seen(lengths: tuple[int, ...], first: int) -> None:
    """Sequences that begin anew, then go on; their first cells hold NaN."""
    held, page_size = [first] * len(lengths), 4
    total = sum(lengths) + len(lengths)
    cache = tuple(
        torch.full(
            (row_pages(lengths, [first + 1 for _ in lengths], page_size), page_size, 2, WIDTH), float("nan")
        )
        for _ in range(2)
    )
    pages = paged_row(lengths, [first + 1 for _ in lengths], page_size).pages
    assert pages is not None
    q, k, v = heads(total, 4, 2)
    past: list[tuple[Tensor, Tensor]] = [(k[:0], v[:0])] * len(lengths)
    at = 0
    for step in (lengths, (1,) * len(lengths)):
        part = slice(at, at + sum(step))
        row = Packing.cached(step, held, pages.tolist(), range(len(step)), page_size, first=first)
        wanted = []
        for n, sides in enumerate(zip(*(x[part].split(step) for x in (q, k, v)), strict=True)):
            past[n] = (torch.cat((past[n][0], sides[1])), torch.cat((past[n][1], sides[2])))
            wanted.append(twins.attention(sides[0].double(), *(x.double() for x in past[n]), SCALE))
        found = attention(q[part], k[part], v[part], row, (cache[0], cache[1]), SCALE)
        assert distance(found, torch.cat(wanted)) < 2e-6
        held, at = [h + n for h, n in zip(held, step, strict=True)], part.stop
    assert all(stored[pages[:, 0], 0].isnan().all() for stored in cache)


def test_caches_need_not_be_contiguous() -> None:
    """Keys and values of all layers lie in one piece of memory, page by page."""
    row, (q, k, v) = paged_row([9, 2], [0, 0], 4), heads(11, 4, 2)
    memory = torch.full((row_pages([9, 2], [0, 0], 4), 3, 2, 4, 2, WIDTH), float("nan"))
    found = attention(q, k, v, row, (memory[:, 1, 0], memory[:, 1, 1]), SCALE)
    assert found.equal(attention(q, k, v, Packing.of([9, 2]), None, SCALE))
    assert row.cells is not None
    for i, fresh in enumerate((k, v)):
        assert memory[row.cells // 4, 1, i, row.cells % 4].equal(fresh)
    assert memory[:, [0, 2]].isnan().all()
