"""The attention half of a layer in one call: norms, rotary positions, the paged cache, attention, the gate.

Called by the CPU form of the attention layer. Invariant: nothing but this file hands addresses to the
kernels of `attention_*`, and it looks at every tensor first.
"""

from __future__ import annotations

from array import array
from operator import add
from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from ..ops import Row, stored_width
from . import attention_decode, attention_prefill, isa
from .attention_inputs import preparing
from .attention_job import CODES, EXACT, EXACT_BF16, FAST
from .inputs import float_bits
from .workspace import Workspace

KINDS = {torch.float32: EXACT, torch.bfloat16: EXACT_BF16, torch.int8: CODES}  # by the dtype of the cache
SHORT = attention_decode.WINDOW  # the longest piece that is answered from a layout


class AttentionWeights(NamedTuple):
    """Weights of the norms [D] fp32, zero-centred, and the shape: Q query and G key heads of width D."""

    q_norm: Tensor
    k_norm: Tensor
    eps: float
    query_heads: int
    key_heads: int
    width: int
    scale: float


def supported(query_heads: int, key_heads: int, width: int, dtype: torch.dtype) -> bool:
    """Whether there is a kernel for heads of a width, and caches of a dtype."""
    return width % 16 == 0 and query_heads % key_heads == 0 and dtype in KINDS


class _Paged(NamedTuple):
    """Where keys and values are: addresses of both, bytes from page to page, cells a page; the cells of the
    new tokens [T]; the pages of each sequence [N, P]."""

    dtype: torch.dtype
    caches: tuple[int, int, int, int]
    places: np.ndarray
    pages: np.ndarray

    @classmethod
    def of(cls, cache: tuple[Tensor, Tensor], row: Row, heads: int, width: int) -> _Paged:
        """A cache of keys and values [pages, page size, G, `stored_width`], of which only the pages need not
        adjoin."""
        keys, values = cache
        width = stored_width(width, keys.dtype)
        (_, size, *shape), (step, *steps) = keys.shape, keys.stride()
        assert keys.dtype == values.dtype and keys.shape == values.shape and keys.stride() == values.stride()
        assert shape == [heads, width] and steps == [heads * width, width, 1] and step >= size * heads * width
        assert row.pages is not None and row.pages.is_contiguous()
        assert row.cells is not None and row.cells.is_contiguous()
        assert max(map(add, row.lengths, row.contexts)) <= row.pages.shape[1] * size
        caches = (keys.data_ptr(), values.data_ptr(), step * keys.itemsize, size)
        return cls(keys.dtype, caches, row.cells.numpy(), row.pages.numpy())

    @classmethod
    def fresh(cls, row: Row, heads: int, width: int, workspace: Workspace) -> _Paged:
        """Without a cache: room for the row's own keys and values, in which a sequence is a "page" that
        begins at its first token."""
        assert not any(row.contexts) and not row.first
        starts = np.asarray(row.starts, np.int64)
        total, step = sum(row.lengths), heads * width * 4
        keys, values = (workspace.address(f"attention {name}", total * step) for name in ("keys", "values"))
        return cls(torch.float32, (keys, values, step, total), np.arange(total), starts[:, None])


def _check(projected_TX: Tensor, weights: AttentionWeights, row: Row, rotary: tuple[Tensor, Tensor]) -> None:
    """What the kernels take for granted of all but the caches."""
    (tokens, columns), (cos, sin) = projected_TX.shape, rotary
    queries, keys, width = weights.query_heads, weights.key_heads, weights.width
    assert columns == 2 * (queries + keys) * width and projected_TX.stride(1) == 1 and projected_TX.is_cpu
    assert tokens == sum(row.lengths) and min(row.lengths) > 0
    assert weights.q_norm.shape == weights.k_norm.shape == (width,)
    assert cos.shape == sin.shape == (tokens, cos.shape[1]) and 2 * cos.shape[1] <= width
    assert projected_TX.dtype == torch.float32
    for tensor in (weights.q_norm, weights.k_norm, cos, sin):
        assert tensor.dtype == torch.float32 and tensor.is_contiguous()


def gated_attention(
    projected_TX: Tensor,
    weights: AttentionWeights,
    row: Row,
    rotary: tuple[Tensor, Tensor],
    cache: tuple[Tensor, Tensor] | None,
    out_TQD: Tensor,
    *,
    workspace: Workspace,
    exact: bool,
) -> Tensor:
    """Rows of (q | gate | k | v) -> the gated answers [T, Q * D], before the output projection.

    New keys and values are rounded to the cache's dtype (int8: to 255 steps of each head's largest) and are
    seen as rounded, by their own piece too, so that an answer does not depend on how a prompt was cut. With
    `exact` all arithmetic is fp32; without it, queries and weights are rounded to bf16 where the cache is
    bf16 and the machine multiplies it.
    """
    shape = (weights.query_heads, weights.key_heads, weights.width)
    assert out_TQD.shape == (len(projected_TX), shape[0] * shape[2])
    assert out_TQD.dtype == torch.float32 and out_TQD.is_contiguous()
    paged = _Paged.of(cache, row, *shape[1:]) if cache else _Paged.fresh(row, *shape[1:], workspace)
    kind = KINDS[paged.dtype]
    if kind == EXACT_BF16 and not exact and isa.has_bf16() and weights.width % 32 == 0:
        kind = FAST
    job = _prepare(kind, projected_TX, weights, row, rotary, paged, out_TQD.data_ptr(), workspace)
    if min(row.lengths) <= attention_decode.WINDOW:
        _decode(job, row, shape, paged, workspace)
    for n, length in enumerate(row.lengths):
        if length > attention_decode.WINDOW:
            piece = (row.starts[n], length, row.contexts[n], paged.pages[n].ctypes.data)
            _prefill(job, piece, row.first, shape, workspace)
    return out_TQD


def store(
    projected_TX: Tensor,
    weights: AttentionWeights,
    row: Row,
    rotary: tuple[Tensor, Tensor],
    cache: tuple[Tensor, Tensor],
    *,
    workspace: Workspace,
) -> None:
    """Rows of (k | v): put into the cache what `gated_attention` would, and answer nothing."""
    weights = weights._replace(query_heads=0)
    paged = _Paged.of(cache, row, weights.key_heads, weights.width)
    kind = KINDS[paged.dtype]
    _prepare(kind, projected_TX, weights, row, rotary, paged, 0, workspace)


def _prepare(
    kind: int,
    projected_TX: Tensor,
    weights: AttentionWeights,
    row: Row,
    rotary: tuple[Tensor, Tensor],
    paged: _Paged,
    out: int,
    workspace: Workspace,
) -> tuple[int, ...]:
    """Put keys and values into the cache, and queries where the `Job` that is returned says."""
    _check(projected_TX, weights, row, rotary)
    tokens, (heads, _, width) = len(projected_TX), weights[3:6]
    job = (
        kind,
        *weights[3:6],
        row.first,
        tokens,
        projected_TX.data_ptr(),
        projected_TX.stride(0) * 4,
        weights.q_norm.data_ptr(),
        weights.k_norm.data_ptr(),
        float_bits(weights.eps),
        rotary[0].data_ptr(),
        rotary[1].data_ptr(),
        rotary[0].shape[1],
        float_bits(weights.scale),
        workspace.address("attention queries", tokens * heads * width * 4),
        *paged.caches,
        paged.places.ctypes.data,
        workspace.address("attention heads", numba.get_num_threads() * width * 4),
        out,
    )
    workspace.run(preparing, array("q", job), tokens)
    return job


def _prefill(
    job: tuple[int, ...],
    piece: tuple[int, int, int, int],
    first: int,
    shape: tuple[int, int, int],
    workspace: Workspace,
) -> None:
    """Answer one long piece, span by span."""
    threads, step = numba.get_num_threads(), attention_prefill.scratch_bytes(shape[2])
    queries = piece[1] * shape[0] + shape[1] * attention_prefill.HIGH
    numbers = (
        workspace.address("attention panels", attention_prefill.panel_bytes(*shape[1:])),
        workspace.address("attention states", queries * 8),
        workspace.address("attention tiles", threads * step),
        step,
        workspace.address("attention tasks", 64),
    )
    begin = first // attention_prefill.BLOCK * attention_prefill.BLOCK
    for span in range(begin, piece[1] + piece[2], attention_prefill.SPAN):
        workspace.run(attention_prefill.answering, array("q", (*job, *piece, span, *numbers)), threads)


def _decode(
    job: tuple[int, ...], row: Row, shape: tuple[int, int, int], paged: _Paged, workspace: Workspace
) -> None:
    """Answer the short pieces of a row."""
    pages, size = paged.pages, paged.caches[3]
    table, threads = row.table, numba.get_num_threads()
    short = [length for length in row.lengths if length <= attention_decode.WINDOW]
    room = attention_decode.parts_floats(shape, len(short), sum(short), pages.shape[1] * size)
    step = attention_decode.scratch_bytes(shape)
    numbers = (
        len(table),
        table.ctypes.data,
        workspace.address("attention layout", 16 * (len(table) + 1)),
        pages.ctypes.data,
        pages.shape[1],
        workspace.address("attention parts", room * 4),
        workspace.address("attention scores", threads * step),
        step,
        workspace.address("attention tasks", 64),
    )
    workspace.run(attention_decode.answering, array("q", (*job, *numbers)), threads)
