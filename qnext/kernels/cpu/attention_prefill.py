"""Attention of long pieces (prompts, training): products of matrices in registers, a block of keys at a time.

Called by `attention`. The keys of a sequence are cut into blocks at fixed positions. Of each block, keys and
values are first copied into panels, the form in which the products read them; then tiles of 6 queries take
it in: scores, weights, weighted values. Between blocks a tile's unfinished answer waits in the output, its
largest score and its sum of weights beside it; the last block that it sees finishes it. Invariant: what a
tile does depends on its own sequence only, so that neither neighbours nor the number of threads change a bit.

A panel holds 64 columns (16 where a head's width leaves less): [step][column], where a step is a number in
fp32, or a pair of them in bf16 where the answer need not be exact. Columns of keys' panels are keys and their
steps dimensions; with values it is the other way round.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import prange

from .activations import as_int, exp, sigmoid
from .attention_decode import EXACT, FAST
from .jit import inline, kernel
from .shuffles import take, transpose, zip_high, zip_low
from .simd import (
    dot_bf16,
    fill,
    fma,
    larger,
    largest,
    load,
    load_bf16,
    load_i32,
    peek,
    poke,
    registers_f32,
    registers_i32,
    spread,
    spread_i32,
    store,
    store_bf16,
    store_i32,
    total,
)

BLOCK = 512  # keys that are in panels at once: those of one key head fit in the second cache
TILE = 6  # queries of a tile: with 4 vectors each their sums fill 24 registers
PANEL = 64
LOWEST = -1e30  # below every score, and yet a number
ROW = BLOCK * 4  # bytes of a query's scores


def scratch_bytes(width: int) -> int:
    """What a thread needs: a tile's queries, its answers, its scores."""
    return TILE * (2 * width * 4 + ROW)


def panel_bytes(key_heads: int, width: int) -> int:
    """What the panels of a block take: keys, then as many values."""
    return 2 * key_heads * BLOCK * width * 4


def _multiplier(fast: bool, vectors: int) -> Callable[..., None]:
    """Products of a tile's rows and a panel, added to `out` where it is not `fresh`."""
    count, line = TILE * vectors, vectors * 64

    @inline
    def multiply(rows: int, row_step: int, panel: int, steps: int, fresh: bool, out: int, step: int) -> None:
        sums = registers_f32(count)
        for r in range(TILE):
            for v in range(vectors):
                sums[r * vectors + v] = fill(0.0) if fresh else load(out + r * step + v * 64)
        for k in range(steps):
            for r in range(TILE):
                for v in range(vectors):
                    at = r * vectors + v
                    if fast:
                        x, y = spread_i32(rows + r * row_step + k * 4), load_i32(panel + k * line + v * 64)
                        sums[at] = dot_bf16(sums[at], x, y)
                    else:
                        p, q = spread(rows + r * row_step + k * 4), load(panel + k * line + v * 64)
                        sums[at] = fma(p, q, sums[at])
        for r in range(TILE):
            for v in range(vectors):
                store(out + r * step + v * 64, sums[r * vectors + v])

    return multiply


_multiply_exact, _multiply_fast = _multiplier(False, 4), _multiplier(True, 4)
_multiply_last_exact, _multiply_last_fast = _multiplier(False, 1), _multiplier(True, 1)


@inline
def _key_panel(kind: int, keys: int, cells: Any, first: int, width: int, panel: int) -> None:
    """Copy 64 keys from the `first` of the block on, 16 x 16 steps at a time."""
    rows = registers_i32(16)
    size, span = 4 if kind == EXACT else 2, 32 if kind == FAST else 16
    for group in range(0, PANEL, 16):
        for d in range(0, width, span):
            for i in range(16):
                source = keys + cells[first + group + i] + d * size
                if kind in (FAST, EXACT):
                    rows[i] = load_i32(source)
                else:
                    rows[i] = as_int(load_bf16(source))
            transpose(rows)
            to = panel + (d * 16 // span * PANEL + group) * 4
            for i in range(16):
                store_i32(to + i * PANEL * 4, rows[i])


@inline
def _value_place(panels: int, column: int, step: int, width: int, bytes_each: int) -> int:
    """Where 16 columns of a step are."""
    wide = width // PANEL * PANEL
    if column < wide:
        begin = column // PANEL * PANEL
        return panels + begin * bytes_each + (step * PANEL + column - begin) * 4
    return panels + column * bytes_each + step * 64


@inline
def _value_panels(kind: int, values: int, cells: Any, first: int, width: int, panels: int) -> None:
    """Copy 64 values from the `first` of the block on."""
    if kind == FAST:
        for i in range(first, first + PANEL, 2):
            one, two = values + cells[i], values + cells[i + 1]
            for d in range(0, width, 32):
                x, y = load_i32(one + d * 2), load_i32(two + d * 2)
                store_i32(_value_place(panels, d, i // 2, width, BLOCK * 2), zip_low(x, y))
                store_i32(_value_place(panels, d + 16, i // 2, width, BLOCK * 2), zip_high(x, y))
    else:
        for i in range(first, first + PANEL):
            for d in range(0, width, 16):
                x = load(values + cells[i] + d * 4) if kind == EXACT else load_bf16(values + cells[i] + d * 2)
                store(_value_place(panels, d, i, width, BLOCK * 4), x)


@inline
def _score(fast: bool, queries: int, width: int, panels: int, count: int, out: int) -> None:
    """Scores of a tile for `count` panels of keys [6][BLOCK]."""
    for i in range(count):
        if fast:
            panel = panels + i * PANEL * width * 2
            _multiply_fast(queries, width * 2, panel, width // 2, True, out + i * PANEL * 4, ROW)
        else:
            panel = panels + i * PANEL * width * 4
            _multiply_exact(queries, width * 4, panel, width, True, out + i * PANEL * 4, ROW)


@inline
def _softmax(fast: bool, scores: int, seen: int, columns: int, state: int) -> Any:
    """Scores of a query become weights, of which the first `seen` are not zero; `state` is its largest score
    so far and its sum of weights. Returns by what the answer so far shrinks."""
    for i in range(max(seen, 0), columns):
        poke(scores + i * 4, -np.inf)
    tops = fill(LOWEST)
    for i in range(0, columns * 4, 64):
        tops = larger(tops, load(scores + i))
    before = fill(peek(state))
    top = larger(before, fill(largest(tops)))
    summed = fill(0.0)
    for i in range(0, columns, 16):
        p = exp(load(scores + i * 4) - top)
        summed = summed + p
        if fast:
            store_bf16(scores + i * 2, p)
        else:
            store(scores + i * 4, p)
    shrunk = exp(before - top)
    poke(state, largest(top))
    poke(state + 4, largest(fma(fill(peek(state + 4)), shrunk, fill(total(summed)))))
    return shrunk


@inline
def _add(fast: bool, weights: int, columns: int, width: int, panels: int, out: int) -> None:
    """Weighted values of a tile, added to its answers [6][D]."""
    wide, step = width // PANEL * PANEL, width * 4
    for d in range(0, wide, PANEL):
        if fast:
            panel = panels + d * BLOCK * 2
            _multiply_fast(weights, ROW, panel, columns // 2, False, out + d * 4, step)
        else:
            panel = panels + d * BLOCK * 4
            _multiply_exact(weights, ROW, panel, columns, False, out + d * 4, step)
    for d in range(wide, width, 16):
        if fast:
            panel = panels + d * BLOCK * 2
            _multiply_last_fast(weights, ROW, panel, columns // 2, False, out + d * 4, step)
        else:
            panel = panels + d * BLOCK * 4
            _multiply_last_exact(weights, ROW, panel, columns, False, out + d * 4, step)


@inline
def _take_in(kind: int, tile: Any, block: Any, heads: Any, rows: Any, panels: Any, work: int) -> None:
    """A tile takes in a block. `tile`: first query, how many there are, key head, where their state is.
    `block`: its first key, keys in it, whether it is the first, cells before the piece's own. `rows`:
    addresses of the piece's queries, answers and gates, bytes from gate to gate. `panels`: those of keys, of
    values."""
    query_heads, key_heads, width = heads
    begin, size, opening, context = block
    one, many, g, state = tile
    queries, out, gates, gate_step = rows
    share, fast = query_heads // key_heads, kind == FAST
    item = 2 if fast else 4
    answers, scores = work + TILE * width * 4, work + TILE * width * 8
    last = context + (min(one + TILE, many) - 1) // share  # the last key that the tile sees
    count = min(size, last + 1 - begin)
    columns = (count + PANEL - 1) // PANEL * PANEL
    for i in range(TILE):
        r = min(one + i, many - 1)
        source = queries + (r // share * query_heads + g * share + r % share) * width * item
        for d in range(0, width * item, 64):
            store(work + i * width * item + d, load(source + d))
    _score(fast, work, width, panels[0], columns // PANEL, scores)
    for i in range(TILE):
        r = min(one + i, many - 1)
        if opening:
            poke(state + i * 8, LOWEST)
            poke(state + i * 8 + 4, 0.0)
        shrunk = _softmax(
            fast, scores + i * ROW, min(context + r // share + 1 - begin, size), columns, state + i * 8
        )
        kept = out + (r // share * query_heads + g * share + r % share) * width * 4
        for d in range(0, width * 4, 64):
            store(answers + i * width * 4 + d, fill(0.0) if opening else load(kept + d) * shrunk)
    _add(fast, scores, columns, width, panels[1], answers)
    for i in range(min(TILE, many - one)):
        r = one + i
        head = (g * share + r % share) * width * 4
        to, gate = out + r // share * query_heads * width * 4 + head, gates + r // share * gate_step + head
        source, summed = answers + i * width * 4, fill(peek(state + i * 8 + 4))
        for d in range(0, width * 4, 64):
            if last < begin + size:
                store(to + d, load(source + d) / summed * sigmoid(load(gate + d)))
            else:
                store(to + d, load(source + d))


@kernel(parallel=True)
def answer(
    kind: int,
    piece: Any,
    first: int,
    heads: Any,
    rows: Any,
    caches: Any,
    pages: Any,
    panels: int,
    states: int,
    scratch: int,
    scratch_step: int,
    counter: int,
    threads: int,
) -> None:
    """Answer a piece: `piece` is its start, length and context in the row. `rows`: addresses of all queries,
    answers and gates, bytes from gate to gate. `caches` as in `prepare`, `pages` [P]. `panels`: room for
    those of a block; `states`: 8 bytes for each query of the piece and 40 more for each key head; `scratch`:
    `scratch_step` bytes for each thread; `counter`: 64 bytes."""
    query_heads, key_heads, width = heads
    keys, values, page_step, page_size = caches
    start, length, context = piece
    share, item = query_heads // key_heads, 4 if kind == EXACT else 2
    many, head = length * share, BLOCK * width * (2 if kind == FAST else 4)
    token = start * query_heads * width
    own = (
        rows[0] + token * (2 if kind == FAST else 4),
        rows[1] + token * 4,
        rows[2] + start * rows[3],
        rows[3],
    )
    cells, tiles, later = np.empty(BLOCK, np.int64), (many + TILE - 1) // TILE, key_heads * head
    for fixed in range(first // BLOCK * BLOCK, context + length, BLOCK):
        begin = max(fixed, first)
        size = min(fixed + BLOCK, context + length) - begin
        for i in range(BLOCK):
            key = begin + min(i, size - 1)
            cells[i] = pages[key // page_size] * page_step + key % page_size * key_heads * width * item
        block = (begin, size, begin == first, context)
        spans = (size + PANEL - 1) // PANEL
        for i in prange(key_heads * spans):
            g, at = i // spans, i % spans * PANEL
            panel = panels + g * head
            to = panel + at * width * (2 if kind == FAST else 4)
            _key_panel(kind, keys + g * width * item, cells, at, width, to)
            _value_panels(kind, values + g * width * item, cells, at, width, panel + later)
        # tiles whose tokens all come before the block are done
        done = max(begin - context, 0) * share // TILE
        store(counter, fill(0.0))
        for thread in prange(threads):
            work, task = scratch + thread * scratch_step, take(counter)
            while task < key_heads * (tiles - done):
                g, one = task // (tiles - done), (task % (tiles - done) + done) * TILE
                state = states + g * (many + 5) * 8 + one * 8
                panel = panels + g * head
                _take_in(kind, (one, many, g, state), block, heads, own, (panel, panel + later), work)
                task = take(counter)
