"""The gated delta rule chunk by chunk: all updates of 16 or 32 tokens are solved at once.

Called by `delta_net`: `pairs` once for the chunk of a key head, then `chunk` for each of its value heads.
With G the sums of log-decays, P_ij = e^(G_i - G_j) q_i k_j (j <= i) and
A_ij = beta_i e^(G_i - G_j) k_i k_j (j < i):
    (I + A) R = beta (V - e^G K S);   O = e^G Q S + P R;   S <- e^(G_L) S + (e^(G_L - G) K)^T R
Legend: L tokens, C rows and U columns of the state S, R what each token adds to it along its key.
Invariant: decays are differences of sums in float64. (Chunks of 64 take 5 % longer. In fp32 a chunk has about
as many products as its tokens one by one: what it saves is loads and stores of the state.) The products with
the state are a matrix unit's, where there is one and answers need not be exact.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from . import activations, simd
from .block_product import ROWS, product
from .jit import inline
from .shuffles import transpose
from .split import DEPTH, add_product, parts_at, split_pairs, split_rows
from .unit import UNIT

LINE, LANES, CHUNK = 64, 16, 32
PITCH = 4 * CHUNK  # bytes of a row with an entry for each token


class Halves(NamedTuple):
    """Where a matrix unit takes part: room for Q, K, K^T, S and R in parts."""

    q: int
    k: int
    turned: int
    state: int
    right: int


@inline
def by_unit(wanted: int, width: int, tokens: int) -> bool:
    """Whether a matrix unit takes part in a chunk."""
    return UNIT and wanted != 0 and width % DEPTH == 0 and tokens == CHUNK


@inline
def pairs(
    q: int, k: int, width: int, tokens: int, desk: tuple[int, int, int], unit: int, halves: Halves
) -> None:
    """K^T [C, L], K K^T and Q K^T [L, L] (their lower halves) of one key head, at `desk`; for a `unit` also
    Q, K and K^T in parts."""
    turned, kk, qk = desk
    pitch = 4 * width
    square = simd.registers_i32(LANES)
    for t in range(0, tokens, LANES):
        for c in range(0, width, LANES):
            for i in range(LANES):
                square[i] = simd.load_i32(k + (t + i) * pitch + 4 * c)
            transpose(square)
            for i in range(LANES):
                simd.store_i32(turned + (c + i) * PITCH + 4 * t, square[i])
    for i in range(0, tokens, ROWS):
        size = LINE * (i // LANES + 1)
        for rows, out in ((k, kk), (q, qk)):
            at = out + i * PITCH
            product((ROWS, size, width), (rows + i * pitch, pitch), (turned, PITCH), 0.0, at, (at, PITCH))
    if UNIT:  # noqa: SIM102 (Numba leaves out what is known to be false)
        if unit:
            split_rows(tokens, width, q, parts_at(halves.q, tokens, 2 * width))
            split_rows(tokens, width, k, parts_at(halves.k, tokens, 2 * width))
            split_rows(width, tokens, turned, parts_at(halves.turned, width, 2 * tokens))


@inline
def sums(decays: int, tokens: int, high: int, low: int) -> None:
    """Running sums of the log-decays, each as two floats: a token that forgets everything must not cost the
    differences after it their digits."""
    total = 0.0
    for t in range(tokens):
        total += np.float64(simd.peek(decays + 4 * t))
        rounded = np.float32(total)
        simd.poke(high + 4 * t, rounded)
        simd.poke(low + 4 * t, np.float32(total - np.float64(rounded)))


@inline
def solve(tokens: int, system: int, right: int, pitch: int) -> None:
    """R from its right-hand side by forward substitution, 16 rows at a time. `system` is -A."""
    for first in range(0, tokens, LANES):
        rows = right + first * pitch
        if first:
            above = (system + first * PITCH, PITCH)
            product((LANES, pitch, first), above, (right, pitch), 1.0, rows, (rows, pitch))
        for i in range(first + 1, first + LANES):
            for u in range(0, pitch, LINE):
                x = simd.load(right + i * pitch + u)
                for j in range(first, i):
                    x = simd.fma(simd.spread(system + i * PITCH + 4 * j), simd.load(right + j * pitch + u), x)
                simd.store(right + i * pitch + u, x)


@inline
def weigh(tokens: int, betas: int, desk: tuple[int, int, int, int], out: tuple[int, int]) -> None:
    """-A and P. `desk`: K K^T, Q K^T and the sums (high, low)."""
    kk, qk, high, low = desk
    system, weights = out
    for i in range(tokens):
        at_high, at_low = simd.spread(high + 4 * i), simd.spread(low + 4 * i)
        minus_beta = simd.fill(0.0) - simd.spread(betas + 4 * i)
        for j in range(0, i + 1, LANES):
            at = i * PITCH + 4 * j
            gap = (at_high - simd.load(high + 4 * j)) + (at_low - simd.load(low + 4 * j))
            left = activations.exp(gap)
            simd.store(system + at, simd.load(kk + at) * left * minus_beta)
            simd.store(weights + at, simd.load(qk + at) * left)
        for j in range(i + 1, (i // LANES + 1) * LANES):
            simd.poke(weights + i * PITCH + 4 * j, np.float32(0.0))


@inline
def read_state(
    source: int,
    shape: tuple[int, int],
    tokens: int,
    rows: tuple[int, int],
    out: tuple[int, int],
    unit: int,
    halves: Halves,
) -> None:
    """Q S and K S."""
    width, pitch = shape
    if UNIT:  # noqa: SIM102 (Numba leaves out what is known to be false)
        if unit:
            state = parts_at(halves.state, width // 2, pitch)
            split_pairs(width, source, state)
            add_product(tokens, width, parts_at(halves.q, tokens, 2 * width), state, True, out[0])
            add_product(tokens, width, parts_at(halves.k, tokens, 2 * width), state, True, out[1])
            return
    product((tokens, pitch, width), (rows[0], 4 * width), (source, pitch), 0.0, out[0], (out[0], pitch))
    product((tokens, pitch, width), (rows[1], 4 * width), (source, pitch), 0.0, out[1], (out[1], pitch))


@inline
def write_state(
    source: int,
    target: int,
    shape: tuple[int, int],
    tokens: int,
    decay: float,
    turned: int,
    right: int,
    unit: int,
    halves: Halves,
) -> None:
    """S <- `decay` S + K^T R."""
    width, pitch = shape
    if UNIT:  # noqa: SIM102 (Numba leaves out what is known to be false)
        if unit:
            kept = simd.fill(decay)
            for at in range(0, width * pitch, LINE):
                simd.store(target + at, kept * simd.load(source + at))
            added = parts_at(halves.right, tokens // 2, pitch)
            split_pairs(tokens, right, added)
            add_product(width, tokens, parts_at(halves.turned, width, 2 * tokens), added, False, target)
            return
    product((width, pitch, tokens), (turned, PITCH), (right, pitch), decay, source, (target, pitch))


@inline
def chunk(
    source: int,
    target: int,
    shape: tuple[int, int],
    tokens: int,
    rows: tuple[int, int, int, int],
    v_pitch: int,
    gates: tuple[int, int],
    products: tuple[int, int, int],
    desk: tuple[int, int, int, int, int, int],
    unit: int,
    halves: Halves,
) -> None:
    """Take tokens (16 or 32) into one head's state. Arguments as `delta_step.steps`, but the first of
    `gates` are log-decays; `products` as `pairs` left them; `desk`: room for the sums, what is left of them,
    -A, P and R; `unit` and `halves` as for `pairs`."""
    pitch = shape[1]
    q, k, v, out = rows
    turned, kk, qk = products
    high, low, left, system, weights, right = desk
    sums(gates[0], tokens, high, low)
    weigh(tokens, gates[1], (kk, qk, high, low), (system, weights))
    read_state(source, shape, tokens, (q, k), (out, right), unit, halves)
    for t in range(0, tokens, LANES):
        simd.store(left + 4 * t, activations.exp(simd.load(high + 4 * t)))
    for i in range(tokens):
        grown, beta = simd.spread(left + 4 * i), simd.spread(gates[1] + 4 * i)
        for u in range(0, pitch, LINE):
            at = i * pitch + u
            simd.store(right + at, beta * (simd.load(v + i * v_pitch + u) - grown * simd.load(right + at)))
            simd.store(out + at, grown * simd.load(out + at))
    decay = np.float64(simd.peek(left + 4 * (tokens - 1)))
    solve(tokens, system, right, pitch)
    for i in range(0, tokens, ROWS):
        at = out + i * pitch
        product((ROWS, pitch, i + ROWS), (weights + i * PITCH, PITCH), (right, pitch), 1.0, at, (at, pitch))
    end_high, end_low = simd.spread(high + 4 * (tokens - 1)), simd.spread(low + 4 * (tokens - 1))
    for t in range(0, tokens, LANES):
        gap = (end_high - simd.load(high + 4 * t)) + (end_low - simd.load(low + 4 * t))
        simd.store(left + 4 * t, activations.exp(gap))
    for i in range(tokens):
        share = simd.spread(left + 4 * i)
        for u in range(0, pitch, LINE):
            simd.store(right + i * pitch + u, share * simd.load(right + i * pitch + u))
    write_state(source, target, shape, tokens, decay, turned, right, unit, halves)
