"""The gated delta rule token by token: the form for short pieces, which reads and writes a state once.

Called by `delta_net` for one value head. Legend: C rows and U columns of the state; q, k and v are rows of
consecutive tokens, q and k normalised. Invariant: source and target may be the same state; the result depends
on nothing but what is given here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import simd
from .jit import inline

LINE = 64


def reader(vectors: int) -> Callable[..., Any]:
    """S^T k of some columns, into registers."""

    @inline
    def read(state: int, pitch: int, height: int, k: int, found: Any, ahead: int) -> None:
        for j in range(vectors):
            found[j] = simd.fill(0.0)
        for i in range(height):
            key = simd.spread(k + 4 * i)
            for j in range(vectors):
                found[j] = simd.fma(simd.load(state + i * pitch + LINE * j), key, found[j])
            for j in range(vectors):
                simd.prefetch(ahead + i * pitch + LINE * j)

    return read


def updater(vectors: int) -> Callable[..., Any]:
    """S <- decay S + k write^T of some columns; S^T q of the new state, and S^T k with the next token's k."""

    @inline
    def update(
        source: int,
        target: int,
        pitch: int,
        height: int,
        decay: int,
        keys: tuple[int, int, int],
        write: Any,
        out: Any,
        found: Any,
    ) -> None:
        k, q, later = keys
        left = simd.spread(decay)
        for j in range(vectors):
            out[j] = simd.fill(0.0)
            found[j] = simd.fill(0.0)
        for i in range(height):
            key, query, next_key = simd.spread(k + 4 * i), simd.spread(q + 4 * i), simd.spread(later + 4 * i)
            for j in range(vectors):
                x = simd.load(source + i * pitch + LINE * j) * left
                x = simd.fma(key, write[j], x)
                simd.store(target + i * pitch + LINE * j, x)
                out[j] = simd.fma(x, query, out[j])
                found[j] = simd.fma(x, next_key, found[j])

    return update


def walker(vectors: int) -> Callable[..., Any]:
    """All tokens of a piece over some columns of the state, which stay in the nearest cache meanwhile."""
    read, update = reader(vectors), updater(vectors)

    @inline
    def walk(
        source: int,
        target: int,
        shape: tuple[int, int],
        tokens: int,
        rows: tuple[int, int, int, int],
        v_pitch: int,
        gates: tuple[int, int],
        ahead: int,
    ) -> None:
        height, pitch = shape
        q, k, v, out = rows
        decays, betas = gates
        found, write, answer = (
            simd.registers_f32(vectors),
            simd.registers_f32(vectors),
            simd.registers_f32(vectors),
        )
        read(source, pitch, height, k, found, ahead)
        for t in range(tokens):
            decay, beta = simd.spread(decays + 4 * t), simd.spread(betas + 4 * t)
            for j in range(vectors):
                write[j] = beta * (simd.load(v + t * v_pitch + LINE * j) - decay * found[j])
            at = 4 * height * t
            later = at + 4 * height * np.int64(t + 1 < tokens)
            update(
                source,
                target,
                pitch,
                height,
                decays + 4 * t,
                (k + at, q + at, k + later),
                write,
                answer,
                found,
            )
            for j in range(vectors):
                simd.store(out + t * pitch + LINE * j, answer[j])
            source = target

    return walk


WIDE = 4
walk_wide, walk_narrow = walker(WIDE), walker(1)


@inline
def steps(
    source: int,
    target: int,
    shape: tuple[int, int],
    tokens: int,
    rows: tuple[int, int, int, int],
    v_pitch: int,
    gates: tuple[int, int],
    ahead: int,
) -> None:
    """Take tokens into one head's state. `shape`: C and bytes of a row; `rows`: where q, k, v and the outputs
    begin (q, k [tokens, C], outputs [tokens, U] without gaps); `gates`: decays (of the state, not its log)
    and betas [tokens]; `ahead`: the state that will be wanted next."""
    q, k, v, out = rows
    at, pitch = 0, shape[1]
    while at + WIDE * LINE <= pitch:
        more = at + 2 * WIDE * LINE <= pitch
        follow = source + at + WIDE * LINE if more else ahead
        walk_wide(source + at, target + at, shape, tokens, (q, k, v + at, out + at), v_pitch, gates, follow)
        at += WIDE * LINE
    while at < pitch:
        walk_narrow(
            source + at, target + at, shape, tokens, (q, k, v + at, out + at), v_pitch, gates, ahead + at
        )
        at += LINE
