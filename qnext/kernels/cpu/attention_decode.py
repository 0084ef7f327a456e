"""Attention of short pieces (single tokens, drafted windows): one reading of each key and value serves all
query heads that share it and all tokens of the window.

Called by `attention`. The keys of a sequence are cut into blocks at fixed positions; a task is one block of
one key head, and leaves a part of the answer: for each query the largest score, the sum of the weights and
the weighted values. `combine` adds up the parts. Invariant: what a task does depends on its own sequence
only, so that neither neighbours nor the number of threads change a bit of an answer.

Queries of a task are taken 8 at a time (a group), keys in pairs, so that 16 sums fill registers. Scores and
weights of a group lie as [pair][key of pair][query]; where values are bf16 and the answer need not be exact,
weights are pairs of bf16 [pair][query][key of pair].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import prange

from .activations import exp, sigmoid
from .jit import inline, kernel
from .shuffles import pair_bf16, swap_halves, take, totals, zip_high, zip_low
from .simd import (
    dot_bf16,
    fill,
    fma,
    larger,
    load,
    load_bf16,
    load_i32,
    poke,
    prefetch,
    registers_f32,
    spread,
    spread_i32,
    store,
    store_i32,
)

WINDOW = 8  # the longest piece that is answered here
BLOCK = 512  # keys of a task
GROUP = 8  # queries whose sums are in registers together
TILE = 32  # pairs of keys whose values are read again for each part of their width
LOWEST = -1e30  # below every score, and yet a number
EXACT_BF16, EXACT, FAST = 0, 1, 2  # caches of bf16 or fp32, with fp32 arithmetic; bf16 throughout


@inline
def _groups(queries: int) -> int:
    return (queries + GROUP - 1) // GROUP


@inline
def _state_floats(queries: int) -> Any:
    """Of the largest scores of a part, and as many of its sums: stored 16 at a time, 8 of them in use."""
    return (_groups(queries) * GROUP + 8 + 15) // 16 * 16


@kernel()
def lay_out(table: Any, first: int, heads: Any) -> Any:
    """For each sequence of the table, and after the last, the number of tasks before it and of floats in
    their parts [N + 1, 2]. Longer pieces have no task here."""
    query_heads, key_heads, width = heads
    found = np.zeros((len(table) + 1, 2), np.int64)
    for n in range(len(table)):
        length, count = table[n, 1], 0
        queries = length * (query_heads // key_heads)
        if length <= WINDOW:
            count = (table[n, 2] + length - 1) // BLOCK + 1 - first // BLOCK
        size = 2 * _state_floats(queries) + _groups(queries) * GROUP * width
        found[n + 1, 0] = found[n, 0] + count * key_heads
        found[n + 1, 1] = found[n, 1] + count * key_heads * size
    return found


def scratch_bytes(heads: tuple[int, int, int]) -> int:
    """What a thread needs: the queries and the scores of the widest window."""
    groups = -(-WINDOW * (heads[0] // heads[1]) // GROUP)
    return groups * GROUP * (heads[2] + BLOCK) * 4


def _scorer(kind: int) -> Callable[..., None]:
    """Scores of 8 queries for two keys, while another two are on their way."""
    read = load_bf16 if kind == EXACT_BF16 else load
    size = 4 if kind == EXACT else 2

    @inline
    def exact(queries: int, width: int, one: int, two: int, ahead: int, after: int, out: int) -> None:
        sums = registers_f32(16)
        for r in range(16):
            sums[r] = fill(0.0)
        for d in range(0, width, 16):
            prefetch(ahead + d * size)
            prefetch(after + d * size)
            x, y = read(one + d * size), read(two + d * size)
            for r in range(8):
                q = load(queries + (r * width + d) * 4)
                sums[r] = fma(q, x, sums[r])
                sums[8 + r] = fma(q, y, sums[8 + r])
        store(out, totals(sums))

    @inline
    def fast(queries: int, width: int, one: int, two: int, ahead: int, after: int, out: int) -> None:
        sums = registers_f32(16)
        for r in range(16):
            sums[r] = fill(0.0)
        for d in range(0, width * 2, 64):
            prefetch(ahead + d)
            prefetch(after + d)
            x, y = load_i32(one + d), load_i32(two + d)
            for r in range(8):
                q = load_i32(queries + r * width * 2 + d)
                sums[r] = dot_bf16(sums[r], q, x)
                sums[8 + r] = dot_bf16(sums[8 + r], q, y)
        store(out, totals(sums))

    return fast if kind == FAST else exact


def _adder(kind: int, vectors: int) -> Callable[..., None]:
    """To 16 numbers of each of 8 answers, for each vector, the weighted values of some pairs of keys.
    `cells` are the values' distances from `values`; those of the next tile are asked for."""
    read, count = load_bf16 if kind == EXACT_BF16 else load, 8 * vectors

    @inline
    def exact(weights: int, values: int, cells: Any, begin: int, end: int, out: int, step: int) -> None:
        sums = registers_f32(count)
        for r in range(8):
            for v in range(vectors):
                sums[r * vectors + v] = load(out + r * step + v * 64)
        size = 64 if kind == EXACT else 32
        for key in range(2 * begin, 2 * end):
            prefetch(values + cells[min(key + 2 * TILE, BLOCK)])
            for r in range(8):
                p = spread(weights + (key * 8 + r) * 4)
                for v in range(vectors):
                    x = read(values + cells[key] + v * size)
                    sums[r * vectors + v] = fma(p, x, sums[r * vectors + v])
        for r in range(8):
            for v in range(vectors):
                store(out + r * step + v * 64, sums[r * vectors + v])

    @inline
    def fast(weights: int, values: int, cells: Any, begin: int, end: int, out: int, step: int) -> None:
        sums = registers_f32(16)
        for r in range(8):
            sums[2 * r] = load(out + r * step)
            sums[2 * r + 1] = load(out + r * step + 64)
        for pair in range(begin, end):
            prefetch(values + cells[min(2 * pair + 2 * TILE, BLOCK)])
            prefetch(values + cells[min(2 * pair + 2 * TILE + 1, BLOCK)])
            one, two = load_i32(values + cells[2 * pair]), load_i32(values + cells[2 * pair + 1])
            x, y = zip_low(one, two), zip_high(one, two)
            for r in range(8):
                p = spread_i32(weights + (pair * 8 + r) * 4)
                sums[2 * r] = dot_bf16(sums[2 * r], p, x)
                sums[2 * r + 1] = dot_bf16(sums[2 * r + 1], p, y)
        for r in range(8):
            store(out + r * step, sums[2 * r])
            store(out + r * step + 64, sums[2 * r + 1])

    return fast if kind == FAST else exact


_score_half, _score_full, _score_fast = (_scorer(kind) for kind in (EXACT_BF16, EXACT, FAST))
_add_half, _add_full, _add_fast = (_adder(kind, 2) for kind in (EXACT_BF16, EXACT, FAST))
_add_last_half, _add_last_full = _adder(EXACT_BF16, 1), _adder(EXACT, 1)


@inline
def _softmax(scores: int, pairs: int, kind: int, largest: int, sums: int) -> None:
    """Scores of a group become weights; its largest scores and sums are stored (twice, side by side)."""
    top = fill(LOWEST)
    for i in range(pairs):
        top = larger(top, load(scores + i * 64))
    top = larger(top, swap_halves(top))
    summed = fill(0.0)
    for i in range(pairs):
        p = exp(load(scores + i * 64) - top)
        summed = summed + p
        if kind == FAST:
            store_i32(scores + i * 32, pair_bf16(p, swap_halves(p)))
        else:
            store(scores + i * 64, p)
    store(largest, top)
    store(sums, summed + swap_halves(summed))


@inline
def _score(
    kind: int, queries: int, groups: int, width: int, keys: int, cells: Any, pairs: int, out: int
) -> None:
    """Scores [group][pair][key][query] of a block."""
    group_bytes = GROUP * width * (2 if kind == FAST else 4)
    for i in range(pairs):
        one, two = keys + cells[2 * i], keys + cells[2 * i + 1]
        ahead, after = keys + cells[min(2 * i + TILE, BLOCK)], keys + cells[min(2 * i + TILE + 1, BLOCK)]
        for group in range(groups):
            q, where = queries + group * group_bytes, out + (group * BLOCK * GROUP + i * 16) * 4
            if kind == FAST:
                _score_fast(q, width, one, two, ahead, after, where)
            elif kind == EXACT:
                _score_full(q, width, one, two, ahead, after, where)
            else:
                _score_half(q, width, one, two, ahead, after, where)


@inline
def _hide(scores: int, seen: int, share: int, queries: int, begin: int, count: int, pairs: int) -> None:
    """Keys from `begin + count` on are none; token w of the window, of `share` queries, sees those before
    `seen + w`."""
    for key in range(min(max(seen - begin, 0), count), pairs * 2):
        for r in range(queries):
            if key >= count or begin + key >= seen + r // share:
                place = (r // GROUP * BLOCK + key) * GROUP + r % GROUP
                poke(scores + place * 4, -np.inf)


@inline
def _add(
    kind: int, weights: int, groups: int, width: int, values: int, cells: Any, pairs: int, out: int
) -> None:
    """Weighted values of a block [query][D]."""
    step = width * 4
    size = 4 if kind == EXACT else 2
    for i in range(0, groups * GROUP * step, 64):
        store(out + i, fill(0.0))
    for begin in range(0, pairs, TILE):
        end = min(begin + TILE, pairs)
        for group in range(groups):
            w, where = weights + group * BLOCK * GROUP * 4, out + group * GROUP * step
            for d in range(0, width - 31, 32):
                if kind == FAST:
                    _add_fast(w, values + d * size, cells, begin, end, where + d * 4, step)
                elif kind == EXACT:
                    _add_full(w, values + d * size, cells, begin, end, where + d * 4, step)
                else:
                    _add_half(w, values + d * size, cells, begin, end, where + d * 4, step)
            if width % 32:
                d = width - 16
                if kind == EXACT:
                    _add_last_full(w, values + d * size, cells, begin, end, where + d * 4, step)
                else:
                    _add_last_half(w, values + d * size, cells, begin, end, where + d * 4, step)


@inline
def _gather(queries: int, rows: int, share: int, token_step: int, size: int, out: int) -> None:
    """The queries of a key head one after another, then zeros up to a whole group."""
    for r in range(rows):
        source = queries + r // share * token_step + r % share * size
        for i in range(0, size, 64):
            store(out + r * size + i, load(source + i))
    for i in range(rows * size, _groups(rows) * GROUP * size, 64):
        store(out + i, fill(0.0))


@inline
def _find_cells(
    pages: Any, begin: int, count: int, step: int, size: int, cell_bytes: int, cells: Any
) -> None:
    """Distances of a block's cells from the first of the cache; after the last it is that of the last."""
    for i in range(count):
        at = begin + i
        cells[i] = pages[at // size] * step + at % size * cell_bytes
    for i in range(count, BLOCK + 2):
        cells[i] = cells[count - 1]


@kernel(parallel=True)
def answer(
    kind: int,
    table: Any,
    layout: Any,
    first: int,
    heads: Any,
    queries: int,
    caches: Any,
    pages: Any,
    parts: int,
    scratch: int,
    scratch_step: int,
    counter: int,
    threads: int,
) -> None:
    """Leave the parts of all tasks of `layout`. `heads`: Q, G, D. `caches` as in `prepare`, `pages` [N, P].
    `scratch`: `scratch_step` bytes for each thread. `counter`: an int64 that is zero."""
    query_heads, key_heads, width = heads
    keys, values, page_step, page_size = caches
    share, item, query_item = query_heads // key_heads, 4 if kind == EXACT else 2, 2 if kind == FAST else 4
    store(counter, fill(0.0))
    for thread in prange(threads):
        cells = np.empty(BLOCK + 2, np.int64)
        gathered = scratch + thread * scratch_step
        n, task = 0, take(counter)
        while task < layout[-1, 0]:
            while task >= layout[n + 1, 0]:
                n += 1
            start, length, context = table[n, 0], table[n, 1], table[n, 2]
            rows = length * share
            groups, state = _groups(rows), _state_floats(rows)
            block, g = (task - layout[n, 0]) // key_heads + first // BLOCK, (task - layout[n, 0]) % key_heads
            begin = max(block * BLOCK, first)
            count = min((block + 1) * BLOCK, context + length) - begin
            pairs = (count + 1) // 2
            _find_cells(pages[n], begin, count, page_step, page_size, key_heads * width * item, cells)
            head = queries + (start * query_heads + g * share) * width * query_item
            _gather(head, rows, share, query_heads * width * query_item, width * query_item, gathered)
            scores = gathered + groups * GROUP * width * 4
            _score(kind, gathered, groups, width, keys + g * width * item, cells, pairs, scores)
            _hide(scores, context + 1, share, rows, begin, count, pairs)
            part = parts + (layout[n, 1] + (task - layout[n, 0]) * (2 * state + groups * GROUP * width)) * 4
            for group in range(groups):
                where = part + group * GROUP * 4
                _softmax(scores + group * BLOCK * GROUP * 4, pairs, kind, where, where + state * 4)
            out = part + 2 * state * 4
            _add(kind, scores, groups, width, values + g * width * item, cells, pairs, out)
            task = take(counter)


@inline
def _weigh(part: int, step: int, blocks: int, state: int) -> None:
    """The largest score of each query in each block becomes the block's share of the answer."""
    for r in range(0, state * 4, 64):
        top, summed = fill(LOWEST), fill(0.0)
        for b in range(blocks):
            top = larger(top, load(part + b * step + r))
        for b in range(blocks):
            here = part + b * step + r
            p = exp(load(here) - top)
            summed = fma(p, load(here + state * 4), summed)
            store(here, p)
        for b in range(blocks):
            store(part + b * step + r, load(part + b * step + r) / summed)


@kernel(parallel=True)
def combine(table: Any, layout: Any, heads: Any, parts: int, gates: int, gate_step: int, out: int) -> None:
    """Add up the parts that `answer` left, and multiply by the sigmoid of the gates. `gates` [T, Q, D] with
    `gate_step` bytes from token to token; `out` [T, Q, D]."""
    query_heads, key_heads, width = heads
    share = query_heads // key_heads
    for piece in prange(len(table) * key_heads):
        n, g = piece // key_heads, piece % key_heads
        start, rows = table[n, 0], table[n, 1] * share
        state = _state_floats(rows)
        step = 4 * (2 * state + _groups(rows) * GROUP * width)
        blocks = (layout[n + 1, 0] - layout[n, 0]) // key_heads
        part, stride = parts + layout[n, 1] * 4 + g * step, step * key_heads
        if blocks:
            _weigh(part, stride, blocks, state)
            for r in range(rows):
                token, head = start + r // share, (g * share + r % share) * width * 4
                gate, to = gates + token * gate_step + head, out + token * query_heads * width * 4 + head
                source = part + (2 * state + r * width) * 4
                for d in range(0, width * 4, 64):
                    total = fill(0.0)
                    for b in range(blocks):
                        total = fma(spread(part + b * stride + r * 4), load(source + b * stride + d), total)
                    store(to + d, total * sigmoid(load(gate + d)))
