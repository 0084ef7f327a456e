"""The gated delta rule token by token: the form for short pieces, which reads and writes a state once.

Called by `delta_net` for one value head. A token's output is S'^T q = e^g S^T q + (k q) write of the state S
before it, so that one pass over the state both writes a token's state and reads it with the next token's k
and q.
Legend: C rows and U columns of the state; q, k and v are rows of consecutive tokens, q and k normalised.
Invariant: source and target may be the same state; the result depends on nothing but what is given here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from . import simd
from .jit import inline

LINE = 64


def reader(vectors: int) -> Callable[..., Any]:
    """S^T k and S^T q of some columns."""

    @inline
    def read(state: int, shape: tuple[int, int], k: int, q: int, found: Any, answer: Any) -> None:
        height, pitch = shape
        for j in range(vectors):
            found[j] = simd.fill(0.0)
            answer[j] = simd.fill(0.0)
        for i in range(height):
            key, query = simd.spread(k + 4 * i), simd.spread(q + 4 * i)
            for j in range(vectors):
                x = simd.load(state + i * pitch + LINE * j)
                found[j] = simd.fma(x, key, found[j])
                answer[j] = simd.fma(x, query, answer[j])

    return read


def mover(vectors: int) -> Callable[..., Any]:
    """S <- decay S + k write^T of some columns, and S^T k, S^T q of the new state with the next token's."""

    @inline
    def move(
        states: tuple[int, int],
        shape: tuple[int, int],
        decay: Any,
        k: int,
        q: int,
        write: Any,
        found: Any,
        answer: Any,
    ) -> None:
        height, pitch = shape
        source, target = states
        for j in range(vectors):
            found[j] = simd.fill(0.0)
            answer[j] = simd.fill(0.0)
        for i in range(height):
            key = simd.spread(k + 4 * i)
            later, query = simd.spread(k + 4 * (height + i)), simd.spread(q + 4 * (height + i))
            for j in range(vectors):
                x = simd.fma(key, write[j], simd.load(source + i * pitch + LINE * j) * decay)
                simd.store(target + i * pitch + LINE * j, x)
                found[j] = simd.fma(x, later, found[j])
                answer[j] = simd.fma(x, query, answer[j])

    return move


def closer(vectors: int) -> Callable[..., Any]:
    """The last token's S <- decay S + k write^T."""

    @inline
    def close(states: tuple[int, int], shape: tuple[int, int], decay: Any, k: int, write: Any) -> None:
        height, pitch = shape
        source, target = states
        for i in range(height):
            key = simd.spread(k + 4 * i)
            for j in range(vectors):
                x = simd.fma(key, write[j], simd.load(source + i * pitch + LINE * j) * decay)
                simd.store(target + i * pitch + LINE * j, x)

    return close


def walker(vectors: int) -> Callable[..., Any]:
    """All tokens of a piece over some columns of the state, which stay in the nearest cache meanwhile."""
    read, move, close = reader(vectors), mover(vectors), closer(vectors)

    @inline
    def walk(
        source: int,
        target: int,
        shape: tuple[int, int],
        tokens: int,
        rows: tuple[int, int, int, int],
        v_pitch: int,
        gates: tuple[int, int, int],
    ) -> None:
        q, k, v, out = rows
        found, answer, write = (
            simd.registers_f32(vectors),
            simd.registers_f32(vectors),
            simd.registers_f32(vectors),
        )
        read(source, shape, k, q, found, answer)
        for t in range(tokens):
            decay, beta = simd.spread(gates[0] + 4 * t), simd.spread(gates[1] + 4 * t)
            match = simd.spread(gates[2] + 4 * t)
            for j in range(vectors):
                write[j] = beta * (simd.load(v + t * v_pitch + LINE * j) - decay * found[j])
                simd.store(out + t * shape[1] + LINE * j, simd.fma(match, write[j], decay * answer[j]))
            at = 4 * shape[0] * t
            if t + 1 < tokens:
                move((source, target), shape, decay, k + at, q + at, write, found, answer)
            else:
                close((source, target), shape, decay, k + at, write)
            source = target

    return walk


WIDE = 8  # whole rows of the published shape: half rows cost nearly twice the time, with or without prefetch
walk_wide, walk_narrow = walker(WIDE), walker(1)


@inline
def steps(
    source: int,
    target: int,
    shape: tuple[int, int],
    tokens: int,
    rows: tuple[int, int, int, int],
    v_pitch: int,
    gates: tuple[int, int, int],
) -> None:
    """Take tokens into one head's state. `shape`: C and bytes of a row; `rows`: where q, k, v and the outputs
    begin (q, k [tokens, C], outputs [tokens, U] without gaps); `gates`: decays (of the state, not its log),
    betas and products k q [tokens]."""
    q, k, v, out = rows
    at, pitch = 0, shape[1]
    while at + WIDE * LINE <= pitch:
        walk_wide(source + at, target + at, shape, tokens, (q, k, v + at, out + at), v_pitch, gates)
        at += WIDE * LINE
    while at < pitch:
        walk_narrow(source + at, target + at, shape, tokens, (q, k, v + at, out + at), v_pitch, gates)
        at += LINE
