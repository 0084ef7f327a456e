"""Attention of short pieces (single tokens, drafted windows): one reading of each key and value serves all
query heads that share it and all tokens of the window.

Called by `attention`. The keys of a sequence are cut into blocks at fixed positions; a task is one block of
all key heads (apart, each head would read stripes of memory, at a third of the speed), and leaves a part of
the answer: for each query the largest score, the sum of the weights and the weighted values. `combine` adds
up the parts. Invariant: what a task does depends on its own sequence only, so that neither neighbours nor the
number of threads change a bit of an answer.

Queries of a key head are taken 8 at a time (a group, in two halves), keys 4 at a time, so that 16 sums fill
registers (where those are fewer, one key after the other). A block is read in 4 streams, each a quarter of
its keys: a place in it is (number in its stream, stream). Scores and weights of half a group lie as
[place][query]; where values are bf16 and the answer need not be exact, weights as pairs of bf16 [pair of
places][query][place of pair], every second 16 bytes unused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import isa
from .activations import exp, sigmoid
from .attention_cells import ITEM, READERS, head_bytes
from .attention_job import CODES, EXACT, EXACT_BF16, FAST, MORE, read_job, read_short
from .jit import inline
from .shuffles import pair_bf16, swap_halves, swap_quarters, take, totals, zip_high, zip_low
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
    prefetch_l2,
    registers_f32,
    spread,
    spread_i32,
    store,
    store_i32,
    word,
)
from .task import Task

WINDOW = 8  # the longest piece that is answered here
BLOCK = 256  # keys of a task
GROUP = 8  # queries
STREAMS = 4  # the machine fetches several streams faster than one
AHEAD = 4  # keys of a stream between what is asked for and what is used
TILE = 2  # keys of each stream whose values are taken at once
ROWS, VECTORS = (
    (GROUP, 2) if isa.many_registers() else (GROUP // 2, 1)
)  # whose weighted values add up at once
HALF = BLOCK * 4 * 4  # bytes of half a group's scores
LOWEST = -1e30  # below every score, and yet a number


@inline
def _groups(queries: int) -> int:
    return (queries + GROUP - 1) // GROUP


@inline
def _state_floats(groups: int) -> Any:
    """Of the largest scores of a part, and as many of its sums: stored 16 at a time, 4 of them in use."""
    return (groups * GROUP + 12 + 15) // 16 * 16


@inline
def _part_floats(groups: int, width: int) -> Any:
    """Of a part: largest scores, sums, weighted values."""
    return 2 * _state_floats(groups) + groups * GROUP * width


def parts_floats(heads: tuple[int, int, int], pieces: int, tokens: int, keys: int) -> int:
    """Room for the parts of so many pieces of so many tokens together, each of which sees up to `keys`."""
    query_heads, key_heads, width = heads
    groups = key_heads * ((tokens * (query_heads // key_heads) + (GROUP - 1) * pieces) // GROUP)
    each = 2 * (groups * GROUP + 32 * pieces) + groups * GROUP * width
    return each * (-(-keys // BLOCK) + 1)


def scratch_bytes(heads: tuple[int, int, int]) -> int:
    """What a thread needs: the queries and the scores of the widest window."""
    groups = heads[1] * -(-WINDOW * (heads[0] // heads[1]) // GROUP)
    return groups * GROUP * (heads[2] + BLOCK) * 4


def _scorer(kind: int) -> Callable[..., None]:
    """Scores of a group for the keys of 4 places, while the keys after some others are on their way."""
    read, size = READERS[kind], ITEM.get(kind, 2)

    @inline
    def exact(
        queries: int, width: int, keys: int, cells: Any, place: int, ahead: int, after: int, out: int
    ) -> None:
        one, two = keys + cells[place], keys + cells[place + 1]
        three, four = keys + cells[place + 2], keys + cells[place + 3]
        for half in range(2):
            sums = registers_f32(16)
            for r in range(16):
                sums[r] = fill(0.0)
            for d in range(0, width, 16):
                prefetch_l2(ahead + cells[after + 2 * half] + d * size)
                prefetch_l2(ahead + cells[after + 2 * half + 1] + d * size)
                x, y = read(one, d, width), read(two, d, width)
                z, t = read(three, d, width), read(four, d, width)
                for r in range(4):
                    q = load(queries + ((half * 4 + r) * width + d) * 4)
                    sums[r] = fma(q, x, sums[r])
                    sums[4 + r] = fma(q, y, sums[4 + r])
                    sums[8 + r] = fma(q, z, sums[8 + r])
                    sums[12 + r] = fma(q, t, sums[12 + r])
            store(out + half * HALF + place * 16, totals(sums))

    @inline
    def one_by_one(
        queries: int, width: int, keys: int, cells: Any, place: int, ahead: int, after: int, out: int
    ) -> None:
        for half in range(2):
            sums = registers_f32(16)
            for i in range(4):
                key, soon, four = keys + cells[place + i], ahead + cells[after + i], registers_f32(4)
                for r in range(4):
                    four[r] = fill(0.0)
                for d in range(0, width, 16):
                    if half == 0:
                        prefetch_l2(soon + d * size)
                    x = read(key, d, width)
                    for r in range(4):
                        four[r] = fma(load(queries + ((half * 4 + r) * width + d) * 4), x, four[r])
                for r in range(4):
                    sums[4 * i + r] = four[r]
            store(out + half * HALF + place * 16, totals(sums))

    return exact if isa.many_registers() else one_by_one


@inline
def _score_fast(
    queries: int, width: int, keys: int, cells: Any, place: int, ahead: int, after: int, out: int
) -> None:
    """The same with products of bf16."""
    one, two = keys + cells[place], keys + cells[place + 1]
    three, four = keys + cells[place + 2], keys + cells[place + 3]
    for half in range(2):
        sums = registers_f32(16)
        for r in range(16):
            sums[r] = fill(0.0)
        for d in range(0, width * 2, 64):
            prefetch_l2(ahead + cells[after + 2 * half] + d)
            prefetch_l2(ahead + cells[after + 2 * half + 1] + d)
            x, y, z, t = load_i32(one + d), load_i32(two + d), load_i32(three + d), load_i32(four + d)
            for r in range(4):
                q = load_i32(queries + (half * 4 + r) * width * 2 + d)
                sums[r] = dot_bf16(sums[r], q, x)
                sums[4 + r] = dot_bf16(sums[4 + r], q, y)
                sums[8 + r] = dot_bf16(sums[8 + r], q, z)
                sums[12 + r] = dot_bf16(sums[12 + r], q, t)
        store(out + half * HALF + place * 16, totals(sums))


def _adder(kind: int, vectors: int) -> Callable[..., None]:
    """To the answers of a group, the weighted values of the places from `begin` to `end`, a few vectors of
    their width at a time, from `first` to `last`. Those of as many places on are asked for."""
    read, size, count, span = READERS[kind], ITEM.get(kind, 2), ROWS * vectors, 16 * vectors

    @inline
    def exact(
        weights: int,
        values: int,
        cells: Any,
        begin: int,
        end: int,
        first: int,
        last: int,
        width: int,
        out: int,
        step: int,
    ) -> None:
        for d in range(first, last, span):
            for top in range(0, 8, ROWS):
                sums, to, share = registers_f32(count), out + top * step + d * 4, weights + top // 4 * HALF
                for r in range(ROWS):
                    for v in range(vectors):
                        sums[r * vectors + v] = load(to + r * step + v * 64)
                for place in range(begin, end):
                    if not top:
                        prefetch_l2(values + cells[place + end - begin] + d * size)
                    for r in range(ROWS):
                        p = spread(share + r // 4 * HALF + place * 16 + r % 4 * 4)
                        for v in range(vectors):
                            x = read(values + cells[place], d + v * 16, width)
                            sums[r * vectors + v] = fma(p, x, sums[r * vectors + v])
                for r in range(ROWS):
                    for v in range(vectors):
                        store(to + r * step + v * 64, sums[r * vectors + v])

    return exact


@inline
def _add_fast(
    weights: int,
    values: int,
    cells: Any,
    begin: int,
    end: int,
    first: int,
    last: int,
    out: int,
    step: int,
) -> None:
    """The same with products of bf16."""
    for d in range(first, last, 32):
        sums, here, to = registers_f32(16), values + d * 2, out + d * 4
        for r in range(8):
            sums[2 * r] = load(to + r * step)
            sums[2 * r + 1] = load(to + r * step + 64)
        for place in range(begin, end, 2):
            prefetch_l2(here + cells[place + end - begin])
            prefetch_l2(here + cells[place + 1 + end - begin])
            one, two = load_i32(here + cells[place]), load_i32(here + cells[place + 1])
            x, y = zip_low(one, two), zip_high(one, two)
            for r in range(8):
                p = spread_i32(weights + r // 4 * HALF + place * 16 + r % 4 * 4)
                sums[2 * r] = dot_bf16(sums[2 * r], p, x)
                sums[2 * r + 1] = dot_bf16(sums[2 * r + 1], p, y)
        for r in range(8):
            store(to + r * step, sums[2 * r])
            store(to + r * step + 64, sums[2 * r + 1])


_score_half, _score_full, _score_codes = _scorer(EXACT_BF16), _scorer(EXACT), _scorer(CODES)
_add_half, _add_full, _add_codes = (_adder(kind, VECTORS) for kind in (EXACT_BF16, EXACT, CODES))
_add_last_half, _add_last_full, _add_last_codes = _adder(EXACT_BF16, 1), _adder(EXACT, 1), _adder(CODES, 1)


@inline
def _softmax(scores: int, places: int, kind: int, largest: int, sums: int) -> None:
    """Scores of half a group become weights; its largest scores and sums are stored (four times, side by
    side)."""
    top = fill(LOWEST)
    for i in range(0, places * 16, 64):
        top = larger(top, load(scores + i))
    top = larger(top, swap_halves(top))
    top = larger(top, swap_quarters(top))
    summed = fill(0.0)
    for i in range(0, places * 16, 64):
        p = exp(load(scores + i) - top)
        summed = summed + p
        if kind == FAST:
            store_i32(scores + i, pair_bf16(p, swap_quarters(p)))
        else:
            store(scores + i, p)
    summed = summed + swap_halves(summed)
    store(largest, top)
    store(sums, summed + swap_quarters(summed))


@inline
def _score(
    kind: int, queries: int, heads: Any, groups: int, caches: Any, cells: Any, places: int, out: int
) -> None:
    """Scores [group][half][place][query] of a block, for `groups` groups of each key head."""
    _, key_heads, width = heads
    keys, values, _, _ = caches
    row = GROUP * width * (2 if kind == FAST else 4)
    size = head_bytes(kind, width)
    for place in range(0, places, STREAMS):
        # after the last keys the first values are asked for
        after, ahead = place + AHEAD * STREAMS, keys
        if after >= places:
            after, ahead = min(after - places, places - STREAMS), values
        for group in range(key_heads * groups):
            q, here, head = queries + group * row, out + group * 2 * HALF, group // groups * size
            if kind == FAST:
                _score_fast(q, width, keys + head, cells, place, ahead + head, after, here)
            elif kind == EXACT:
                _score_full(q, width, keys + head, cells, place, ahead + head, after, here)
            elif kind == CODES:
                _score_codes(q, width, keys + head, cells, place, ahead + head, after, here)
            else:
                _score_half(q, width, keys + head, cells, place, ahead + head, after, here)


@inline
def _hide(scores: int, seen: int, share: int, query: int, count: int, places: int) -> None:
    """In half a group, of which `query` is the first of its key head: keys from `count` on are none; token w
    of the window, of `share` queries, sees those before `seen + w`."""
    for place in range(places if min(seen, count) < places else 0):
        key = _key(place, count)
        for r in range(4 if key >= min(seen, count) else 0):
            if key >= count or key >= seen + (query + r) // share:
                poke(scores + place * 16 + r * 4, -np.inf)


@inline
def _add(
    kind: int, weights: int, heads: Any, groups: int, values: int, cells: Any, places: int, out: int
) -> None:
    """Weighted values of a block [group][query][D]."""
    _, key_heads, width = heads
    size, step = head_bytes(kind, width), width * 4
    for i in range(0, key_heads * groups * GROUP * step, 64):
        store(out + i, fill(0.0))
    for begin in range(0, places, TILE * STREAMS):
        end, even = min(begin + TILE * STREAMS, places), width // (16 * VECTORS) * (16 * VECTORS)
        for group in range(key_heads * groups):
            w, here, to = (
                weights + group * 2 * HALF,
                values + group // groups * size,
                out + group * GROUP * step,
            )
            if kind == FAST:
                _add_fast(w, here, cells, begin, end, 0, width, to, step)
            elif kind == EXACT:
                _add_full(w, here, cells, begin, end, 0, even, width, to, step)
                _add_last_full(w, here, cells, begin, end, even, width, width, to, step)
            elif kind == CODES:
                _add_codes(w, here, cells, begin, end, 0, even, width, to, step)
                _add_last_codes(w, here, cells, begin, end, even, width, width, to, step)
            else:
                _add_half(w, here, cells, begin, end, 0, even, width, to, step)
                _add_last_half(w, here, cells, begin, end, even, width, width, to, step)


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
def _key(place: int, count: int) -> Any:
    """Which key of a block of `count` is at a place (some of the last stream's places may have none)."""
    return place % STREAMS * ((count + STREAMS - 1) // STREAMS) + place // STREAMS


@inline
def _find_places(
    pages: int, begin: int, count: int, step: int, size: int, cell_bytes: int, cells: Any
) -> Any:
    """How many places a block has, and where they are; a place without a key, or after the last, is that of
    another key."""
    each = (count + STREAMS - 1) // STREAMS
    for stream in range(STREAMS):
        key = begin + min(stream * each, count - 1)
        page, at = key // size, key % size
        for i in range(each):
            cells[i * STREAMS + stream] = word(pages + 8 * page) * step + at * cell_bytes
            if stream * each + i < count - 1:
                at += 1
                if at == size:
                    page, at = page + 1, 0
    for i in range(each * STREAMS, len(cells)):
        cells[i] = cells[i - STREAMS]
    return each * STREAMS


def begin_tasks(address: int, thread: int, threads: int) -> None:
    """None is taken yet. Lay out for each sequence, and after the last, the number of tasks before it and of
    floats in their parts: [N + 1, 2]. Longer pieces have no task here."""
    if thread:
        return
    job, short = read_job(address), read_short(address + MORE)
    poke_word(short.counter, 0)
    tasks, floats = 0, 0
    for n in range(short.sequences + 1):
        poke_word(short.layout + 16 * n, tasks)
        poke_word(short.layout + 16 * n + 8, floats)
        if n < short.sequences:
            at = short.table + 48 * n
            length, context = word(at + 8), word(at + 16)
            if length <= WINDOW:
                count = (context + length - 1) // BLOCK + 1 - job.first // BLOCK
                groups = job.key_heads * _groups(length * (job.query_heads // job.key_heads))
                tasks, floats = tasks + count, floats + count * _part_floats(groups, job.width)


def answer_share(address: int, thread: int, threads: int) -> None:
    """Leave the parts of tasks of the layout until all are taken."""
    job, short = read_job(address), read_short(address + MORE)
    kind, heads = job.kind, (job.query_heads, job.key_heads, job.width)
    query_heads, key_heads, width = heads
    caches = (job.keys, job.values, job.page_step, job.page_size)
    share, cell = query_heads // key_heads, key_heads * head_bytes(kind, width)
    row, tasks = width * (2 if kind == FAST else 4), word(short.layout + 16 * short.sequences)
    cells = np.empty(BLOCK + TILE * STREAMS, np.int64)
    work = short.scratch + thread * short.scratch_step
    n, task = 0, take(short.counter)
    while task < tasks:
        while task >= word(short.layout + 16 * (n + 1)):
            n += 1
        at = short.table + 48 * n
        start, length, context = word(at), word(at + 8), word(at + 16)
        groups = _groups(length * share)
        every, block = key_heads * groups, task - word(short.layout + 16 * n)
        begin = max((block + job.first // BLOCK) * BLOCK, job.first)
        count = min((block + job.first // BLOCK + 1) * BLOCK, context + length) - begin
        pages = short.pages + 8 * n * short.pitch
        places = _find_places(pages, begin, count, job.page_step, job.page_size, cell, cells)
        for g in range(key_heads):
            head = job.queries + (start * query_heads + g * share) * row
            _gather(head, length * share, share, query_heads * row, row, work + g * groups * GROUP * row)
        scores = work + every * GROUP * row
        _score(kind, work, heads, groups, caches, cells, places, scores)
        part = short.parts + (word(short.layout + 16 * n + 8) + block * _part_floats(every, width)) * 4
        state = _state_floats(every) * 4
        for half in range(2 * every):
            here, where = scores + half * HALF, part + half * 16
            _hide(here, context + 1 - begin, share, half % (2 * groups) * 4, count, places)
            _softmax(here, places, kind, where, where + state)
        _add(kind, scores, heads, groups, job.values, cells, places, part + 2 * state)
        task = take(short.counter)


@inline
def _weigh(part: int, step: int, blocks: int, queries: int, state: int) -> None:
    """The largest score of each query of a key head in each block becomes the block's share of the answer.
    `state`: bytes from the largest scores to the sums."""
    for r in range(queries):
        at = part + r * 4
        top, summed = fill(LOWEST), fill(0.0)
        for b in range(blocks):
            top = larger(top, spread(at + b * step))
        for b in range(blocks):
            p = exp(spread(at + b * step) - top)
            summed = fma(p, spread(at + b * step + state), summed)
            poke(at + b * step, largest(p))
        for b in range(blocks):
            poke(at + b * step, peek(at + b * step) / largest(summed))


def combine_share(address: int, thread: int, threads: int) -> None:
    """Add up the parts that the tasks left, and multiply by the sigmoid of the gates, which lie between
    queries and keys in the rows."""
    job, short = read_job(address), read_short(address + MORE)
    query_heads, key_heads, width = job.query_heads, job.key_heads, job.width
    share, gates = query_heads // key_heads, job.rows + query_heads * width * 4
    every = short.sequences * key_heads
    for piece in range(every * thread // threads, every * (thread + 1) // threads):
        n, g = piece // key_heads, piece % key_heads
        at, laid = short.table + 48 * n, short.layout + 16 * n
        start, queries, blocks = word(at), word(at + 8) * share, word(laid + 16) - word(laid)
        if blocks:
            groups = _groups(queries)
            state, step = _state_floats(key_heads * groups) * 4, _part_floats(key_heads * groups, width) * 4
            weights = short.parts + word(laid + 8) * 4 + g * groups * GROUP * 4
            values = short.parts + word(laid + 8) * 4 + 2 * state + g * groups * GROUP * width * 4
            _weigh(weights, step, blocks, queries, state)
            for r in range(queries):
                token, head = start + r // share, (g * share + r % share) * width * 4
                gate = gates + token * job.row_step + head
                to = job.out + token * query_heads * width * 4 + head
                for d in range(0, width * 4, 64):
                    total = fill(0.0)
                    for b in range(blocks):
                        p = spread(weights + b * step + r * 4)
                        total = fma(p, load(values + b * step + r * width * 4 + d), total)
                    store(to + d, total * sigmoid(load(gate + d)))


answering = Task(begin_tasks, answer_share, combine_share)
