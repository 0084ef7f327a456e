"""Attention of long pieces (prompts, training): products of matrices in registers, a block of keys at a time.

Called by `attention`. The keys of a sequence are cut into blocks at fixed positions. Of a few blocks (a
span), keys and values are first copied into panels, the form in which the products read them; then tiles of 6
queries take in block after block: scores, weights, weighted values. Between blocks a tile's unfinished answer
waits in the output, its largest score and its sum of weights beside it; the last block that it sees finishes
it. Invariant: what a tile does depends on its own sequence only, so that neither neighbours nor the number of
threads change a bit.

A panel holds 64 columns (16 where a head's width leaves less): [step][column], where a step is a number in
fp32, or a pair of them in bf16 where the answer need not be exact. Columns of keys' panels are keys and their
steps dimensions; with values it is the other way round.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import isa
from .activations import as_int, exp, sigmoid
from .attention_cells import head_bytes, read
from .attention_job import FAST, MORE, read_job, read_long
from .jit import inline
from .shuffles import take, transpose, zip_high, zip_low
from .simd import (
    dot_bf16,
    fill,
    fma,
    larger,
    largest,
    load,
    load_i32,
    peek,
    poke,
    poke_word,
    registers_f32,
    registers_i32,
    spread,
    spread_i32,
    store,
    store_bf16_pair,
    store_i32,
    total,
    word,
)
from .task import Task
from .unit import SIDE, UNIT, dot_sums, leave_unit, load_sums, store_sums, take_unit, zero_sums

# Keys of a block: their panels, of one key head, fit in the second cache, and a span's in some of the third.
BLOCK = 512 if isa.many_registers() else 128
SPAN = 4 * BLOCK  # keys that are in panels at once
TILE = 6  # queries of a tile,
AT_ONCE = 4 if isa.many_registers() else 1  # and vectors of each: their sums fill 24 registers, or 12
HIGH = SIDE if UNIT else TILE  # the same of pairs of bf16, where a matrix unit multiplies them
RUN = 96  # queries that a thread takes through a span together: their answers fit beside a block
PANEL = 64
LOWEST = -1e30  # below every score, and yet a number
ROW = BLOCK * 4  # bytes of a query's scores


def scratch_bytes(width: int) -> int:
    """What a thread needs: a tile's queries, its answers, its scores."""
    return HIGH * (2 * width * 4 + ROW)


def panel_bytes(key_heads: int, width: int) -> int:
    """What the panels of a span take: for each block keys, then as many values."""
    return 2 * key_heads * SPAN * width * 4


def _in_unit(vectors: int) -> Callable[..., None]:
    """`_multiplier` of pairs of bf16 by a matrix unit."""
    line = vectors * 64

    @inline
    def multiply(rows: int, row_step: int, panel: int, steps: int, fresh: bool, out: int, step: int) -> None:
        if fresh:
            zero_sums(vectors)
        else:
            load_sums(vectors, out, step)
        for k in range(0, steps, SIDE):
            dot_sums(vectors, rows + 4 * k, row_step, panel + k * line, line)
        store_sums(vectors, out, step)

    return multiply


def _multiplier(fast: bool, vectors: int) -> Callable[..., None]:
    """Products of a tile's rows and a panel, added to `out` where it is not `fresh`."""
    if fast and UNIT:
        return _in_unit(vectors)
    width = min(vectors, AT_ONCE)
    count, line, span = TILE * width, vectors * 64, width * 64

    @inline
    def multiply(rows: int, row_step: int, panel: int, steps: int, fresh: bool, out: int, step: int) -> None:
        for begin in range(0, line, span):
            sums, here, to = registers_f32(count), panel + begin, out + begin
            for r in range(TILE):
                for v in range(width):
                    sums[r * width + v] = fill(0.0) if fresh else load(to + r * step + v * 64)
            for k in range(steps):
                for r in range(TILE):
                    for v in range(width):
                        at = r * width + v
                        if fast:
                            x, y = spread_i32(rows + r * row_step + k * 4), load_i32(here + k * line + v * 64)
                            sums[at] = dot_bf16(sums[at], x, y)
                        else:
                            p, q = spread(rows + r * row_step + k * 4), load(here + k * line + v * 64)
                            sums[at] = fma(p, q, sums[at])
            for r in range(TILE):
                for v in range(width):
                    store(to + r * step + v * 64, sums[r * width + v])

    return multiply


_multiply_exact, _multiply_fast = _multiplier(False, 4), _multiplier(True, 4)
_multiply_last_exact, _multiply_last_fast = _multiplier(False, 1), _multiplier(True, 1)


@inline
def _height(kind: int) -> int:
    """Queries of a tile."""
    return HIGH if kind == FAST else TILE


@inline
def _key_panel(kind: int, keys: int, cells: Any, first: int, width: int, panel: int) -> None:
    """Copy 64 keys from the `first` of the block on, 16 x 16 steps at a time."""
    rows = registers_i32(16)
    span = 32 if kind == FAST else 16
    for group in range(0, PANEL, 16):
        for d in range(0, width, span):
            for i in range(16):
                head = keys + cells[first + group + i]
                rows[i] = load_i32(head + d * 2) if kind == FAST else as_int(read(kind, head, d, width))
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
def _value_panels(kind: int, values: int, cells: Any, first: int, at: int, width: int, panels: int) -> None:
    """Copy 64 values as steps from `at` on; their cells begin at `first`."""
    if kind == FAST:
        for i in range(0, PANEL, 2):
            one, two, step = values + cells[first + i], values + cells[first + i + 1], (at + i) // 2
            for d in range(0, width, 32):
                x, y = load_i32(one + d * 2), load_i32(two + d * 2)
                store_i32(_value_place(panels, d, step, width, BLOCK * 2), zip_low(x, y))
                store_i32(_value_place(panels, d + 16, step, width, BLOCK * 2), zip_high(x, y))
    else:
        for i in range(PANEL):
            one = values + cells[first + i]
            for d in range(0, width, 16):
                store(_value_place(panels, d, at + i, width, BLOCK * 4), read(kind, one, d, width))


@inline
def _copy_panels(
    kind: int, caches: Any, cells: Any, first: int, at: int, g: int, width: int, keys: int, values: int
) -> None:
    """Copy 64 keys and values of a key head, `at` so many of their block; their cells begin at `first`."""
    size = head_bytes(kind, width)
    panel = keys + at * width * (2 if kind == FAST else 4)
    _key_panel(kind, caches[0] + g * size, cells, first, width, panel)
    _value_panels(kind, caches[1] + g * size, cells, first, at, width, values)


@inline
def _find_cells(
    pages: int, begin: int, fixed: int, end: int, caches: Any, heads: Any, kind: int, cells: Any
) -> None:
    """How far the keys from `begin` on are from the first of the cache, block by block from `fixed` on. After
    a block's last it is that of the last."""
    _, _, page_step, page_size = caches
    cell = heads[1] * head_bytes(kind, heads[2])
    for block in range(fixed, end, BLOCK):
        for i in range(BLOCK):
            key = min(max(block, begin) + i, min(block + BLOCK, end) - 1)
            page = word(pages + 8 * (key // page_size))
            cells[block - fixed + i] = page * page_step + key % page_size * cell


@inline
def _score(fast: bool, queries: int, width: int, panels: int, count: int, out: int) -> None:
    """Scores of a tile for `count` panels of keys [queries][BLOCK]."""
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
    tops, others = fill(LOWEST), fill(LOWEST)
    for i in range(0, columns * 4, 128):
        tops, others = larger(tops, load(scores + i)), larger(others, load(scores + i + 64))
    before = fill(peek(state))
    top = larger(before, fill(largest(larger(tops, others))))
    summed = fill(0.0)
    for i in range(0, columns, 32):
        p, q = exp(load(scores + i * 4) - top), exp(load(scores + i * 4 + 64) - top)
        summed = summed + (p + q)
        if fast:
            store_bf16_pair(scores + i * 2, p, q)
        else:
            store(scores + i * 4, p)
            store(scores + i * 4 + 64, q)
    shrunk = exp(before - top)
    poke(state, largest(top))
    poke(state + 4, largest(fma(fill(peek(state + 4)), shrunk, fill(total(summed)))))
    return shrunk


@inline
def _add(fast: bool, weights: int, columns: int, width: int, panels: int, out: int) -> None:
    """Weighted values of a tile, added to its answers [queries][D]."""
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
    share, fast, height = query_heads // key_heads, kind == FAST, _height(kind)
    item = 2 if fast else 4
    answers, scores = work + height * width * 4, work + height * width * 8
    last = context + (min(one + height, many) - 1) // share  # the last key that the tile sees
    count = min(size, last + 1 - begin)
    columns = (count + PANEL - 1) // PANEL * PANEL
    for i in range(height):
        r = min(one + i, many - 1)
        source = queries + (r // share * query_heads + g * share + r % share) * width * item
        for d in range(0, width * item, 64):
            store(work + i * width * item + d, load(source + d))
    _score(fast, work, width, panels[0], columns // PANEL, scores)
    for i in range(height):
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
    for i in range(min(height, many - one)):
        r = one + i
        head = (g * share + r % share) * width * 4
        to, gate = out + r // share * query_heads * width * 4 + head, gates + r // share * gate_step + head
        source, summed = answers + i * width * 4, fill(peek(state + i * 8 + 4))
        for d in range(0, width * 4, 64):
            if last < begin + size:
                store(to + d, load(source + d) / summed * sigmoid(load(gate + d)))
            else:
                store(to + d, load(source + d))


def copy_share(address: int, thread: int, threads: int) -> None:
    """Bring a thread's part of a span's keys and values into panels. No run of tiles is taken yet."""
    job, piece = read_job(address), read_long(address + MORE)
    heads = (job.query_heads, job.key_heads, job.width)
    caches = (job.keys, job.values, job.page_step, job.page_size)
    kind, key_heads, fixed, end = job.kind, job.key_heads, piece.span, piece.context + piece.length
    if not thread:
        poke_word(piece.counter, 0)
    head, cells = BLOCK * job.width * (2 if kind == FAST else 4), np.empty(SPAN, np.int64)
    _find_cells(piece.pages, max(fixed, job.first), fixed, min(fixed + SPAN, end), caches, heads, kind, cells)
    count = (min(SPAN, end - fixed) + BLOCK - 1) // BLOCK * key_heads * (BLOCK // PANEL)
    for i in range(count * thread // threads, count * (thread + 1) // threads):
        at, g = i % (BLOCK // PANEL) * PANEL, i // (BLOCK // PANEL) % key_heads
        block = i // (BLOCK // PANEL) // key_heads
        if fixed + block * BLOCK + at < end:
            to = piece.panels + (block * 2 * key_heads + g) * head
            _copy_panels(kind, caches, cells, block * BLOCK + at, at, g, job.width, to, to + key_heads * head)


def answer_share(address: int, thread: int, threads: int) -> None:
    """Take runs of tiles through a span's blocks until all are taken."""
    job, piece = read_job(address), read_long(address + MORE)
    kind, heads = job.kind, (job.query_heads, job.key_heads, job.width)
    query_heads, key_heads, width = heads
    fixed, context, end = piece.span, piece.context, piece.context + piece.length
    share = query_heads // key_heads
    many, token = piece.length * share, piece.start * query_heads * width
    own = (
        job.queries + token * (2 if kind == FAST else 4),
        job.out + token * 4,
        job.rows + piece.start * job.row_step + query_heads * width * 4,
        job.row_step,
    )
    head, height = BLOCK * width * (2 if kind == FAST else 4), _height(kind)
    tiles, together = (many + height - 1) // height, RUN // height
    blocks = (min(SPAN, end - fixed) + BLOCK - 1) // BLOCK
    # tiles whose tokens all come before these keys are done
    done = max(fixed - context, 0) * share // height
    runs = (tiles - done + together - 1) // together
    work, task = piece.scratch + thread * piece.scratch_step, take(piece.counter)
    take_unit(kind == FAST)
    while task < key_heads * runs:
        g, run = task // runs, done + task % runs * together
        for block in range(blocks):
            begin = max(fixed + block * BLOCK, job.first)
            size = min(fixed + block * BLOCK + BLOCK, end) - begin
            panel = piece.panels + (block * 2 * key_heads + g) * head
            for tile in range(run, min(run + together, tiles)):
                one = tile * height
                place = (one, many, g, piece.states + (g * (many + height) + one) * 8)
                if context + min(one + height - 1, many - 1) // share >= begin:
                    keys = (begin, size, begin == job.first, context)
                    _take_in(kind, place, keys, heads, own, (panel, panel + key_heads * head), work)
        task = take(piece.counter)
    leave_unit(kind == FAST)


answering = Task(copy_share, answer_share)
