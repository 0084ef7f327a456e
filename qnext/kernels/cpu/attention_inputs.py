"""What attention starts from: queries and keys normalised and rotated, keys and values in their pages.

Called by `attention` before any query is answered. Invariant: a token's numbers do not depend on the others
of its row, nor on the number of threads.

Addresses of the row: heads of width D lie end to end, in fp32 as (q | gate | k | v). A head's scratch holds D
floats.
"""

from __future__ import annotations

from typing import Any

from numba import prange

from .jit import inline, kernel
from .simd import fill, fma, load, peek, poke, root, store, store_bf16, total


@inline
def _normalised(x: int, weight: int, width: int, eps: float, out: int) -> None:
    """x / rms(x) * (1 + weight)."""
    squares = fill(0.0)
    for i in range(0, width * 4, 64):
        squares = fma(load(x + i), load(x + i), squares)
    scale = fill(1.0) / root(fill(total(squares) / width + eps))
    for i in range(0, width * 4, 64):
        store(out + i, load(x + i) * scale * (fill(1.0) + load(weight + i)))


@inline
def _rotate(x: int, cos: int, sin: int, half: int) -> None:
    """In place: number i against number i + half, for i < half."""
    whole = half // 16 * 16
    for i in range(0, whole * 4, 64):
        a, b, c, s = load(x + i), load(x + half * 4 + i), load(cos + i), load(sin + i)
        store(x + i, a * c - b * s)
        store(x + half * 4 + i, b * c + a * s)
    for i in range(whole * 4, half * 4, 4):
        a, b, c, s = peek(x + i), peek(x + half * 4 + i), peek(cos + i), peek(sin + i)
        poke(x + i, a * c - b * s)
        poke(x + half * 4 + i, b * c + a * s)


@inline
def _put(x: int, width: int, scale: float, rounded: bool, out: int) -> None:
    """Multiplied, as bf16 or fp32."""
    for i in range(0, width, 16):
        if rounded:
            store_bf16(out + i * 2, load(x + i * 4) * fill(scale))
        else:
            store(out + i * 4, load(x + i * 4) * fill(scale))


@kernel(parallel=True)
def prepare(
    row: int,
    row_step: int,
    tokens: int,
    heads: Any,
    norms: Any,
    eps: float,
    rotary: Any,
    scale: float,
    queries: int,
    rounded_queries: bool,
    caches: Any,
    places: Any,
    rounded_cache: bool,
    scratch: int,
    threads: int,
) -> None:
    """`heads`: Q, G, D. `norms`: addresses of q's and k's weights. `rotary`: addresses of cos and sin [T, R],
    R. `caches`: addresses of keys and values, bytes from page to page, cells a page. `places` [T]: cells."""
    query_heads, key_heads, width = heads
    keys, values, page_step, page_size = caches
    cos, sin, half = rotary
    head = width * 4
    query_bytes, cell_bytes = width * (2 if rounded_queries else 4), width * (2 if rounded_cache else 4)
    for thread in prange(threads):
        work = scratch + thread * head
        for t in range(tokens * thread // threads, tokens * (thread + 1) // threads):
            x, turn = row + t * row_step, t * half * 4
            for h in range(query_heads):
                _normalised(x + h * head, norms[0], width, eps, work)
                _rotate(work, cos + turn, sin + turn, half)
                _put(work, width, scale, rounded_queries, queries + (t * query_heads + h) * query_bytes)
            cell = places[t] // page_size * page_step + places[t] % page_size * key_heads * cell_bytes
            x += 2 * query_heads * head
            for g in range(key_heads):
                _normalised(x + g * head, norms[1], width, eps, work)
                _rotate(work, cos + turn, sin + turn, half)
                _put(work, width, 1.0, rounded_cache, keys + cell + g * cell_bytes)
                value = x + (key_heads + g) * head
                _put(value, width, 1.0, rounded_cache, values + cell + g * cell_bytes)
