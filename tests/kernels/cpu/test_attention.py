"""The attention half in one call against the reference ops, on rows that mix all kinds of pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numba
import pytest
import torch
from torch import Tensor

from qnext.kernels import reference
from qnext.kernels.cpu.attention import AttentionWeights, gated_attention, supported
from qnext.kernels.cpu.workspace import Workspace
from qnext.kernels.ops import SCALE
from qnext.model.packing import Arrays, Packing

from ..twins import distance

BF16, FP32, INT8 = torch.bfloat16, torch.float32, torch.int8
ROUNDING = {BF16: 4e-3, FP32: 1e-6, INT8: 1e-2}  # of a key, by the dtype of its cache
SHAPES = [(16, 2, 256, 32), (4, 1, 64, 8), (6, 2, 48, 5), (3, 3, 16, 8), (12, 1, 32, 16)]  # Q, G, D, R
ROWS = [  # lengths, contexts
    ((1,), (0,)),
    ((1, 1, 1), (40, 511, 1200)),
    ((4, 1, 8, 3), (508, 513, 1021, 0)),
    ((30, 1, 9, 5), (0, 600, 70, 20)),
    ((150, 2, 70), (530, 17, 0)),
    ((60, 1), (2020, 2047)),  # a piece over more keys than are in panels at once
]
CASES = [  # the longest, where heads are wide, of one dtype: it takes much memory
    (shape, dtype, *row)
    for shape in SHAPES
    for dtype in (BF16, FP32, INT8)
    for row in ROWS
    if row is not ROWS[-1] or shape is not SHAPES[0] or dtype == BF16
]
Shape = tuple[int, int, int, int]
Cache = tuple[Tensor, Tensor]


def stored(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Heads [.., D] as a cache holds them."""
    if dtype != INT8:
        return x.to(dtype)
    scale = x.abs().amax(-1, keepdim=True) / 127
    codes = (x / torch.where(scale == 0, 1.0, scale)).round().to(INT8)
    return torch.cat((codes, scale.view(INT8)), -1)


def numbers(cells: Tensor) -> Tensor:
    """What they mean, fp32."""
    if cells.dtype != INT8:
        return cells.float()
    return cells[..., :-SCALE].float() * cells[..., -SCALE:].contiguous().view(FP32)


def without_numbers(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Cells that hold nothing: NaN."""
    if dtype != INT8:
        return torch.full(tuple(shape), float("nan"), dtype=dtype)
    return torch.full((*shape[:-1], shape[-1] + SCALE), -1, dtype=INT8)


@dataclass(frozen=True)
class Case:
    """A row with its caches; cells that hold nothing are NaN."""

    projected: Tensor
    weights: AttentionWeights
    row: Packing
    rotary: tuple[Tensor, Tensor]
    cache: Cache | None

    @classmethod
    def paged(
        cls,
        shape: Shape,
        lengths: Sequence[int],
        contexts: Sequence[int],
        *,
        dtype: torch.dtype = FP32,
        page_size: int = 16,
        first: int = 0,
    ) -> Case:
        """Pages in disorder, of a cache that holds other layers too. `contexts` do not count empty cells."""
        rng = torch.Generator().manual_seed(len(lengths) + page_size)
        contexts = [context + first for context in contexts]
        needs = [-(-(a + b) // page_size) for a, b in zip(lengths, contexts, strict=True)]
        places = torch.randperm(sum(needs) + 3, generator=rng).tolist()
        pages = [[places.pop() for _ in range(need)] for need in needs]
        row = Packing.cached(lengths, contexts, pages, range(len(lengths)), page_size, first=first)
        memory = without_numbers((sum(needs) + 3, 2, 2, page_size, *shape[1:3]), dtype)
        for held, context in zip(pages, contexts, strict=True):
            at = torch.arange(first, context)
            cells = stored(torch.randn(len(at), 2, *shape[1:3], generator=rng), dtype)
            memory[torch.tensor(held)[at // page_size], 1, :, at % page_size] = cells
        return cls._with(shape, row, (memory[:, 1, 0], memory[:, 1, 1]), rng)

    @classmethod
    def whole(cls, shape: Shape, lengths: Sequence[int]) -> Case:
        """Without a cache."""
        return cls._with(shape, Packing.of(lengths), None, torch.Generator().manual_seed(1))

    @classmethod
    def _with(cls, shape: Shape, row: Packing, cache: Cache | None, rng: torch.Generator) -> Case:
        queries, keys, width, half = shape
        columns = 2 * (queries + keys) * width
        projected = torch.randn(row.total, columns + 7, generator=rng)[:, :columns]  # rows are further apart
        norms = [torch.randn(width, generator=rng) * 0.2 for _ in range(2)]
        angles = torch.rand(row.total, half, generator=rng) * 7
        weights = AttentionWeights(norms[0], norms[1], 1e-6, queries, keys, width, width**-0.5)
        return cls(projected, weights, row, (angles.cos(), angles.sin()), cache)

    def copy(self) -> Case:
        """With caches of its own, whose pages lie as far apart."""
        if self.cache is None:
            return self
        pages, *cells = self.cache[0].shape
        memory = torch.zeros((pages, 2, 2, *cells), dtype=self.cache[0].dtype)
        memory[:, 1, 0], memory[:, 1, 1] = self.cache
        return replace(self, cache=(memory[:, 1, 0], memory[:, 1, 1]))

    def only(self, n: int) -> Case:
        """Sequence n alone."""
        row, start = self.row, self.row.starts[n]
        part = slice(start, start + row.lengths[n])
        positions, pages, _, cells, _ = row.arrays
        assert pages is not None and cells is not None
        numbers = Arrays(positions[part], pages[n : n + 1], None, cells[part])
        alone = Packing(row.lengths[n : n + 1], row.contexts[n : n + 1], numbers, row.first)
        rotary = (self.rotary[0][part], self.rotary[1][part])
        return replace(self.copy(), projected=self.projected[part], row=alone, rotary=rotary)

    def run(self, exact: bool, workspace: Workspace | None = None) -> Tensor:
        """The kernel's answer; the caches are changed."""
        out = torch.full((self.row.total, self.weights.query_heads * self.weights.width), float("nan"))
        given = (self.projected, self.weights, self.row, self.rotary, self.cache, out)
        assert gated_attention(*given, workspace=workspace or Workspace(), exact=exact) is out
        return out

    def heads(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The reference's q, gate, k and v, normalised and rotated [T, Q or G, D]."""
        weights, (queries, keys, width) = self.weights, self.weights[3:6]
        wide, narrow = queries * width, keys * width
        parts = self.projected.split((wide, wide, narrow, narrow), 1)
        q, gate, k, v = (x.reshape(len(x), -1, width) for x in parts)
        q = reference.rotate(reference.rms_norm(q, weights.q_norm, weights.eps), *self.rotary)
        k = reference.rotate(reference.rms_norm(k, weights.k_norm, weights.eps), *self.rotary)
        return q, gate, k, v

    def check(self, exact: bool, limit: float = 1e-5) -> None:
        """Run, and hold the answer and the caches to the reference. Its keys and values are those that the
        kernel stored: a bit of a sum may decide how a key is rounded."""
        before, found = self.copy(), self.run(exact)
        q, gate, k, v = self.heads()
        if self.cache is not None and before.cache is not None:
            assert self.row.cells is not None
            size = self.cache[0].shape[1]
            cells = self.row.cells // size, self.row.cells % size
            dtype = self.cache[0].dtype
            if dtype == INT8:  # half a step, whichever way a tie goes
                steps = self.cache[1][cells][..., -SCALE:].contiguous().view(FP32)
                assert steps.equal(v.abs().amax(-1, keepdim=True) / 127)
                assert ((numbers(self.cache[1][cells]) - v).abs() <= steps * 0.5001).all()
            else:
                assert self.cache[1][cells].equal(v.to(dtype))
            assert distance(numbers(self.cache[0][cells]), k) < ROUNDING[dtype]
            k, v = (numbers(each[cells]) for each in self.cache)
            for each, old in zip(self.cache, before.cache, strict=True):
                old[cells] = each[cells]
                assert each.view(torch.uint8).equal(old.view(torch.uint8))
        known = before.cache and tuple(map(numbers, before.cache))
        out = reference.attention(q, k, v, self.row, known, self.weights.scale)
        wanted = (out * gate.sigmoid()).flatten(1)
        assert distance(found, wanted) < (limit if exact else 2 * limit)
        assert (found - wanted).norm() < limit * wanted.norm()


@pytest.mark.parametrize("shape,dtype,lengths,contexts", CASES, ids=str)
def test_equals_the_reference(
    shape: Shape, dtype: torch.dtype, lengths: tuple[int, ...], contexts: tuple[int, ...]
) -> None:
    Case.paged(shape, lengths, contexts, dtype=dtype).check(exact=True)


@pytest.mark.parametrize("lengths,contexts", ROWS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rounded_to_bf16_it_is_near(
    shape: Shape, lengths: tuple[int, ...], contexts: tuple[int, ...]
) -> None:
    Case.paged(shape, lengths, contexts, dtype=BF16).check(exact=False, limit=4e-3)


@pytest.mark.parametrize("lengths", [(1,), (2, 9, 1), (70, 3, 33)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_needs_no_cache(shape: Shape, lengths: tuple[int, ...]) -> None:
    Case.whole(shape, lengths).check(exact=True)


@pytest.mark.parametrize("first", [1, 3])
@pytest.mark.parametrize("page_size", [1, 5, 64])
@pytest.mark.parametrize("lengths,contexts", ROWS[1:], ids=str)
def test_pages_of_any_size_with_empty_first_cells(
    lengths: tuple[int, ...], contexts: tuple[int, ...], page_size: int, first: int
) -> None:
    case = Case.paged(SHAPES[1], lengths, contexts, page_size=page_size, first=first, dtype=BF16)
    case.check(exact=True)


@pytest.mark.parametrize("dtype,exact", [(BF16, True), (BF16, False), (INT8, False)], ids=str)
@pytest.mark.parametrize("lengths,contexts", ROWS, ids=str)
def test_an_answer_does_not_depend_on_neighbours_or_threads(
    lengths: tuple[int, ...], contexts: tuple[int, ...], dtype: torch.dtype, exact: bool
) -> None:
    case = Case.paged(SHAPES[0], lengths, contexts, dtype=dtype)
    together, threads = case.copy().run(exact), numba.get_num_threads()
    for n, start in enumerate(case.row.starts):
        assert case.only(n).run(exact).equal(together[start : start + lengths[n]])
    numba.set_num_threads(1)
    try:
        assert case.copy().run(exact).equal(together)
    finally:
        numba.set_num_threads(threads)


def test_memory_that_was_used_before_changes_nothing() -> None:
    workspace = Workspace()
    for lengths, contexts in (ROWS[4], ROWS[2], ROWS[1], ROWS[3]):
        case = Case.paged(SHAPES[0], lengths, contexts, dtype=BF16)
        assert case.copy().run(True, workspace).equal(case.copy().run(True))


def test_scores_may_be_large() -> None:
    """Queries as long as their norms can make them: one key takes all, and nothing overflows."""
    case = Case.paged(SHAPES[1], *ROWS[3])
    case.weights.q_norm.fill_(200.0)
    case.check(exact=True, limit=1e-4)


def test_what_is_supported() -> None:
    assert supported(16, 2, 256, BF16) and supported(3, 1, 48, FP32) and supported(4, 1, 64, INT8)
    assert not supported(4, 1, 24, FP32) and not supported(4, 1, 64, torch.float16)


def test_a_wrong_tensor_is_refused() -> None:
    case = Case.paged(SHAPES[1], *ROWS[0])
    assert case.cache is not None
    for wrong in (
        replace(case, projected=case.projected.double()),
        replace(case, projected=case.projected[:, :-1]),
        replace(case, rotary=(case.rotary[0], case.rotary[1][:, :-1])),
        replace(case, cache=(case.cache[0], case.cache[1].transpose(1, 2))),
        replace(case, cache=(case.cache[0], case.cache[1].bfloat16())),
    ):
        with pytest.raises(AssertionError):
            wrong.run(exact=True)
