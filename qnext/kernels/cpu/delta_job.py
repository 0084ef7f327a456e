"""What a call of the delta net is about, as compiled code sees it: the numbers of the call, where a sequence
and head lie in it, and the memory that a thread works on.

Made by `delta_net`, read by `delta_piece`. Invariant: the fields of `Job` are the numbers that `delta_net`
lays down, in that order.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from .delta_chunk import CHUNK, Halves
from .jit import inline, reader
from .simd import word

LINE = 64
TABLE, SAVE = 48, 24  # bytes of a row of `Row.table` and `Row.save_table`


class Shape(NamedTuple):
    """Of the layer."""

    key_heads: int
    key_width: int
    value_heads: int
    value_width: int
    taps: int

    @property
    def channels(self) -> int:
        """Of the convolution."""
        return 2 * self.key_heads * self.key_width + self.value_heads * self.value_width


class Job(NamedTuple):
    """All of a call: the layer's shape, then numbers, addresses, and pitches in bytes. `eps` is the bits of a
    float, `state` is 0 without caches, `half` tells that elements are bf16. `table` is `Row.table`, `saves`
    `Row.save_table`. `exact` is 0 where a matrix unit may take part."""

    key_heads: int
    key_width: int
    value_heads: int
    value_width: int
    width: int
    eps: int
    taps: int
    a_log: int
    dt_bias: int
    norm: int
    conv: int
    conv_rows: int
    conv_half: int
    state: int
    window_k: int
    window_v: int
    window_gates: int
    window: int
    window_half: int
    projected: int
    projected_pitch: int
    gates: int
    gates_pitch: int
    out: int
    out_pitch: int
    desks: int
    desk_size: int
    sequences: int
    save_count: int
    table: int
    saves: int
    exact: int


read_job = reader(Job)


class Place(NamedTuple):
    """A sequence and a key head. Tokens are counted with the replayed ones; the state takes in `kept` of
    them."""

    sequence: int
    head: int
    start: int
    slot: int
    replays: int
    kept: int
    total: int


class Desk(NamedTuple):
    """Where a thread keeps what it works on, and `end`, where that ends."""

    history: int
    rows: int
    q: int
    k: int
    v: int
    logs: int
    decays: int
    betas: int
    matches: int
    out: int
    state: int
    turned: int
    kk: int
    qk: int
    high: int
    low: int
    left: int
    system: int
    weights: int
    right: int
    halves: Halves
    end: int


@inline
def lay(base: int, shape: Shape) -> Desk:
    """The desk of a thread; with base 0, `end` is its size."""
    keys, values = 4 * shape.key_width, 4 * shape.value_width
    group = shape.value_heads // shape.key_heads
    history = base
    width = 2 * keys + group * values
    rows = history + (shape.taps - 1) * width
    q = rows + (shape.taps - 1 + CHUNK) * (width + LINE)
    k = q + CHUNK * keys
    v = k + CHUNK * keys
    logs = v + CHUNK * group * values
    decays = logs + 4 * CHUNK * group
    betas = decays + 4 * CHUNK * group
    matches = betas + 4 * CHUNK * group
    out = matches + 4 * CHUNK
    state = out + CHUNK * values
    turned = state + shape.key_width * group * values
    kk = turned + CHUNK * keys
    qk = kk + 4 * CHUNK * CHUNK
    high = qk + 4 * CHUNK * CHUNK
    low, left, system = high + 4 * CHUNK, high + 8 * CHUNK, high + 12 * CHUNK
    weights = system + 4 * CHUNK * CHUNK
    right = weights + 4 * CHUNK * CHUNK
    q_half = right + CHUNK * values
    k_half, turned_half = q_half + CHUNK * keys, q_half + 2 * CHUNK * keys
    state_half = turned_half + CHUNK * keys
    right_half = state_half + shape.key_width * values
    halves = Halves(q_half, k_half, turned_half, state_half, right_half)
    end = right_half + CHUNK * values
    return Desk(
        history, rows, q, k, v, logs, decays, betas, matches, out, state, turned, kk, qk, high, low,
        left, system, weights, right, halves, end,
    )  # fmt: skip


@cache
def desk_size(shape: Shape) -> int:
    size: int = lay.py_func(0, shape).end
    return size


@inline
def place_of(job: Job, shape: Shape, n: int, head: int) -> Place:
    entry = job.table + TABLE * n
    start, length, slot = word(entry), word(entry + 8), word(entry + 24)
    drafts, replays = word(entry + 32), word(entry + 40)
    if job.state == 0:
        drafts, replays = 0, 0
    return Place(n, head, start, slot, replays, replays + length - drafts, replays + length)


@inline
def save_at(job: Job, index: int) -> tuple[int, int, int]:
    """(sequence, count, slot)."""
    entry = job.saves + SAVE * index
    return word(entry), word(entry + 8), word(entry + 16)


@inline
def state_at(job: Job, shape: Shape, slot: int, value_head: int) -> int:
    return job.state + 4 * shape.key_width * shape.value_width * (slot * shape.value_heads + value_head)


@inline
def conv_at(job: Job, shape: Shape, slot: int, row: int, channel: int) -> int:
    """Inputs of the convolution: those of a row of a slot, from a channel on."""
    size = 4 - 2 * job.conv_half
    at: int = job.conv + size * ((slot * job.conv_rows + row) * channels_of(shape) + channel)
    return at


@inline
def spans(shape: Shape, head: int) -> tuple[tuple[int, int, int], ...]:
    """Where q, k, and v of all value heads lie: (channel in the row, in the history, channels)."""
    width, group = shape.key_width, shape.value_heads // shape.key_heads
    values = group * shape.value_width
    keys = shape.key_heads * width
    return (
        (head * width, 0, width),
        (keys + head * width, width, width),
        (2 * keys + head * values, 2 * width, values),
    )


@inline
def channels_of(shape: Shape) -> int:
    return 2 * shape.key_heads * shape.key_width + shape.value_heads * shape.value_width
