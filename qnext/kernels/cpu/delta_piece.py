"""One sequence's part of a row through one key head of a linear layer, and the value heads that share it.

Called by `delta_net` from many threads. A piece is cut where its state is wanted (after `saves`, and before
drafts); short stretches between cuts take the step form, longer ones the chunked form, 64 tokens at a time.
Invariant: reads and writes only its own head's part of every tensor; outputs of replayed tokens go nowhere.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import activations, convolution, simd
from .delta_chunk import CHUNK, chunk, pairs
from .delta_step import steps
from .jit import inline, reader
from .simd import I64, Build, address, op, read, types

STEP_LIMIT = 16  # longest stretch that takes the step form
LINE, LANES = 64, 16
TABLE, SAVE = 48, 24  # bytes of a row of `Row.table` and `Row.saves`


class Shape(NamedTuple):
    """Of the layer."""

    key_heads: int
    key_width: int
    value_heads: int
    value_width: int
    taps: int


class Job(NamedTuple):
    """All of a call: the layer's shape, then numbers, addresses, and pitches in bytes. `eps` is the bits of a
    float, `state` is 0 without caches, `half` tells that elements are bf16. `table` is `Row.table`, `saves`
    `Row.saves`."""

    key_heads: int
    key_width: int
    value_heads: int
    value_width: int
    width: int
    eps: int
    sequences: int
    table: int
    save_count: int
    saves: int
    desk_size: int
    desks: int
    projected: int
    projected_pitch: int
    gates: int
    gates_pitch: int
    out: int
    out_pitch: int
    taps: int
    a_log: int
    dt_bias: int
    norm: int
    conv: int
    conv_columns: int
    conv_half: int
    state: int
    window_k: int
    window_v: int
    window_gates: int
    window: int
    window_half: int


read_job = reader(Job)


@op(types.int64, address)
def word(build: Build, p: Any) -> Any:
    """An int64."""
    return read(build, p, I64)


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

    line: int
    history: int
    q: int
    k: int
    v: int
    logs: int
    decays: int
    betas: int
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
    end: int


@inline
def lay(base: int, shape: Shape) -> Desk:
    """The desk of a thread; with base 0, `end` is its size."""
    keys, values = 4 * shape.key_width, 4 * shape.value_width
    group = shape.value_heads // shape.key_heads
    line = base
    history = line + LINE
    q = history + (shape.taps - 1) * (2 * keys + group * values)
    k = q + CHUNK * keys
    v = k + CHUNK * keys
    logs = v + CHUNK * group * values
    decays = logs + 4 * CHUNK * group
    betas = decays + 4 * CHUNK * group
    out = betas + 4 * CHUNK * group
    state = out + CHUNK * values
    turned = state + shape.key_width * group * values
    kk = turned + CHUNK * keys
    qk = kk + 4 * CHUNK * CHUNK
    high = qk + 4 * CHUNK * CHUNK
    low, left, system = high + 4 * CHUNK, high + 8 * CHUNK, high + 12 * CHUNK
    weights = system + 4 * CHUNK * CHUNK
    right = weights + 4 * CHUNK * CHUNK
    end = right + CHUNK * values
    return Desk(
        line, history, q, k, v, logs, decays, betas, out, state, turned, kk, qk, high, low, left, system,
        weights, right, end,
    )  # fmt: skip


def desk_size(shape: Shape) -> int:
    size: int = lay.py_func(0, shape).end
    return size


@inline
def place_of(job: Job, shape: Shape, item: int) -> Place:
    n, head = item // shape.key_heads, item % shape.key_heads
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
def next_cut(job: Job, place: Place, begin: int) -> int:
    """Where the stretch from `begin` on ends."""
    end = min(place.total, begin + CHUNK)
    if begin < place.kept < end:
        end = place.kept
    for i in range(job.save_count):
        n, count, _ = save_at(job, i)
        if n == place.sequence and begin < place.replays + count < end:
            end = place.replays + count
    return end


def pieces(job_address: int, thread: int, threads: int) -> None:
    """A thread's share of a call, in turns, so that the heads of a long sequence are shared by all."""
    job = read_job(job_address)
    shape = Shape(job.key_heads, job.key_width, job.value_heads, job.value_width, job.width)
    desk = lay(job.desks + thread * job.desk_size, shape)
    items = job.sequences * shape.key_heads
    for item in range(thread, items, threads):
        following = place_of(job, shape, min(item + threads, items - 1))
        piece(job, shape, place_of(job, shape, item), following, desk)


@inline
def piece(job: Job, shape: Shape, place: Place, following: Place, desk: Desk) -> None:
    """All of one sequence and key head. `following` is what comes next: its state is asked for in time."""
    group = shape.value_heads // shape.key_heads
    history_pitch = 4 * (2 * shape.key_width + group * shape.value_width)
    ahead = desk.state
    if job.state != 0:
        ahead = state_at(job, shape, following.slot, following.head * group)
    recall(job, shape, place, desk, history_pitch)
    begin = np.int64(0)  # not a literal, for which all that takes it would be compiled a second time
    while begin < place.total:
        end = next_cut(job, place, begin)
        take(job, shape, place, desk, history_pitch, begin, end)
        advance(job, shape, place, desk, begin, end, ahead)
        for i in range(job.save_count):
            n, count, slot = save_at(job, i)
            if n == place.sequence and place.replays + count == end:
                copy_state(job, shape, place, slot)
        begin = end
    if job.state != 0:
        leave(job, shape, place, desk, history_pitch)


@inline
def recall(job: Job, shape: Shape, place: Place, desk: Desk, pitch: int) -> None:
    """The inputs of the convolution before the sequence's first token here."""
    past = shape.taps - 1
    if job.state == 0:
        for at in range(0, past * pitch, LINE):
            simd.store(desk.history + at, simd.fill(0.0))
        return
    channels = 2 * shape.key_heads * shape.key_width + shape.value_heads * shape.value_width
    size = 4 - 2 * job.conv_half
    for channel, at, count in spans(shape, place.head):
        state = job.conv + size * job.conv_columns * (place.slot * channels + channel)
        rows = desk.history + 4 * at
        convolution.recall(state, job.conv_half, job.conv_columns, place.replays, past, count, rows, pitch)


@inline
def leave(job: Job, shape: Shape, place: Place, desk: Desk, pitch: int) -> None:
    """The last inputs that are certain, then the drafted ones, into the convolution's state; and those before
    each cut into the slots of `saves`."""
    past, drafts = shape.taps - 1, place.total - place.kept
    certain = place.kept - place.replays
    leave_columns(job, shape, place, desk, pitch, place.slot, certain - past, past + drafts)
    for i in range(job.save_count):
        n, count, slot = save_at(job, i)
        if n == place.sequence:
            leave_columns(job, shape, place, desk, pitch, slot, count - past, past)


@inline
def leave_columns(
    job: Job, shape: Shape, place: Place, desk: Desk, pitch: int, slot: int, first: int, count: int
) -> None:
    """Inputs of own tokens from `first` (below 0: in the history) into the first columns of a slot."""
    past = shape.taps - 1
    channels = 2 * shape.key_heads * shape.key_width + shape.value_heads * shape.value_width
    size = 4 - 2 * job.conv_half
    for channel, at, width in spans(shape, place.head):
        state = job.conv + size * job.conv_columns * (slot * channels + channel)
        rows = job.projected + place.start * job.projected_pitch + 4 * channel
        history = desk.history + past * pitch + 4 * at
        for j in range(count):
            row = convolution.row_at(first + j, rows, job.projected_pitch, history, pitch)
            convolution.keep(state, job.conv_half, job.conv_columns, j, width, row, desk.line)


@inline
def copy_state(job: Job, shape: Shape, place: Place, slot: int) -> None:
    group = shape.value_heads // shape.key_heads
    source = state_at(job, shape, place.slot, place.head * group)
    target = state_at(job, shape, slot, place.head * group)
    for at in range(0, 4 * shape.key_width * group * shape.value_width, LINE):
        simd.store(target + at, simd.load(source + at))


@inline
def take(job: Job, shape: Shape, place: Place, desk: Desk, history_pitch: int, begin: int, end: int) -> None:
    """Lay tokens out on the desk: normalised q and k, v, log-decays, decays and betas. Drafts
    are remembered as they are before q and k are normalised."""
    keys = 4 * shape.key_width
    values = 4 * shape.value_heads // shape.key_heads * shape.value_width
    past, replayed = shape.taps - 1, max(min(end, place.replays) - begin, 0)
    first = begin + replayed - place.replays
    count = end - begin - replayed
    tap = 4 * (2 * shape.key_heads * shape.key_width + shape.value_heads * shape.value_width)
    for i, (channel, at, channels) in enumerate(spans(shape, place.head)):
        pitch = values if i == 2 else keys
        out = (desk.q, desk.k, desk.v)[i] + replayed * pitch
        rows = job.projected + place.start * job.projected_pitch + 4 * channel
        history = desk.history + past * history_pitch + 4 * at
        convolution.convolve(
            (rows, job.projected_pitch, history, history_pitch),
            (job.taps + 4 * channel, tap, shape.taps),
            (first, count),
            channels,
            (out, pitch),
        )
    for t in range(replayed):
        for at in range(0, keys, LINE):
            simd.store(desk.q + t * keys + at, simd.fill(0.0))
    gate(job, shape, place, desk, begin, end, replayed)
    for t in range(end - begin):
        drafted = begin + t - place.kept
        if t < replayed:
            exchange(job, shape, place, desk, t, begin + t, t >= replayed)
        elif drafted >= 0:
            exchange(job, shape, place, desk, t, drafted, t >= replayed)
    for t in range(end - begin):
        normalise(desk.q + t * keys, keys, np.float32(1 / np.sqrt(shape.key_width)))
        normalise(desk.k + t * keys, keys, np.float32(1.0))


@inline
def gate(job: Job, shape: Shape, place: Place, desk: Desk, begin: int, end: int, replayed: int) -> None:
    """Log-decays -e^(A_log) softplus(a + dt_bias), decays and betas sigmoid(b) of the own tokens."""
    group = shape.value_heads // shape.key_heads
    for r in range(group):
        head = place.head * group + r
        lists = 4 * CHUNK * r
        logs, decays, betas = desk.logs + lists, desk.decays + lists, desk.betas + lists
        for t in range(replayed, end - begin):
            row = job.gates + (place.start + begin + t - place.replays) * job.gates_pitch
            simd.poke(betas + 4 * t, simd.peek(row + 4 * head))
            simd.poke(logs + 4 * t, simd.peek(row + 4 * (shape.value_heads + head)))
        speed = simd.fill(0.0) - activations.exp(simd.spread(job.a_log + 4 * head))
        bias = simd.spread(job.dt_bias + 4 * head)
        for t in range(0, end - begin, LANES):
            log = speed * activations.softplus(simd.load(logs + 4 * t) + bias)
            simd.store(logs + 4 * t, log)
            simd.store(decays + 4 * t, activations.exp(log))
            simd.store(betas + 4 * t, activations.sigmoid(simd.load(betas + 4 * t)))


@inline
def exchange(
    job: Job, shape: Shape, place: Place, desk: Desk, token: int, drafted: int, remember: bool
) -> None:
    """Inputs of a token on the desk to their place in the window of drafts, or from there."""
    keys, values, group = shape.key_width, shape.value_width, shape.value_heads // shape.key_heads
    size, at = 4 - 2 * job.window_half, place.slot * job.window + drafted
    k = job.window_k + size * keys * (at * shape.key_heads + place.head)
    v = job.window_v + size * values * (at * shape.value_heads + place.head * group)
    transfer(desk.k + 4 * keys * token, k, keys, job.window_half, remember)
    transfer(desk.v + 4 * group * values * token, v, group * values, job.window_half, remember)
    for r in range(group):
        log, beta = desk.logs + 4 * (CHUNK * r + token), desk.betas + 4 * (CHUNK * r + token)
        kept_log = job.window_gates + 4 * (2 * at * shape.value_heads + place.head * group + r)
        kept_beta = kept_log + 4 * shape.value_heads
        if remember:
            simd.poke(kept_log, simd.peek(log))
            simd.poke(kept_beta, simd.peek(beta))
        else:
            simd.poke(log, simd.peek(kept_log))
            simd.poke(beta, simd.peek(kept_beta))
            simd.poke(desk.decays + 4 * (CHUNK * r + token), np.exp(simd.peek(log)))


@inline
def transfer(desk: int, cache: int, width: int, half: int, remember: bool) -> None:
    """A row of floats to or from a cache of fp32 or bf16."""
    for i in range(0, width, LANES):
        if remember:
            x = simd.load(desk + 4 * i)
            if half:
                simd.store_bf16(cache + 2 * i, x)
            else:
                simd.store(cache + 4 * i, x)
        else:
            x = simd.load_bf16(cache + 2 * i) if half else simd.load(cache + 4 * i)
            simd.store(desk + 4 * i, x)


@inline
def normalise(row: int, size: int, scale: float) -> None:
    """Length `scale`."""
    squares = simd.fill(0.0)
    for at in range(0, size, LINE):
        x = simd.load(row + at)
        squares = simd.fma(x, x, squares)
    factor = simd.fill(scale) / simd.root(simd.fill(simd.total(squares)) + simd.fill(1e-6))
    for at in range(0, size, LINE):
        simd.store(row + at, simd.load(row + at) * factor)


@inline
def blank(desk: Desk, shape: Shape, tokens: int) -> int:
    """Zeros for the tokens up to a multiple of 16: how many there are then."""
    group, zero = shape.value_heads // shape.key_heads, simd.fill(0.0)
    padded = (tokens + LANES - 1) // LANES * LANES
    for base, size in (
        (desk.q, 4 * shape.key_width),
        (desk.k, 4 * shape.key_width),
        (desk.v, 4 * group * shape.value_width),
    ):
        for at in range(tokens * size, padded * size, LINE):
            simd.store(base + at, zero)
    for r in range(group):
        for t in range(tokens, padded):
            simd.poke(desk.logs + 4 * (CHUNK * r + t), np.float32(0.0))
            simd.poke(desk.betas + 4 * (CHUNK * r + t), np.float32(0.0))
    return padded


@inline
def advance(job: Job, shape: Shape, place: Place, desk: Desk, begin: int, end: int, ahead: int) -> None:
    """The delta rule over the tokens on the desk, for each value head of the key head, and their outputs.
    Drafts go on from the state, on the desk."""
    tokens, group, pitch = end - begin, shape.value_heads // shape.key_heads, 4 * shape.value_width
    bytes_of_state = shape.key_width * pitch
    quick = tokens <= STEP_LIMIT
    padded = tokens
    if not quick:
        padded = blank(desk, shape, tokens)
        pairs(desk.q, desk.k, shape.key_width, padded, (desk.turned, desk.kk, desk.qk))
    for r in range(group):
        spare = desk.state + r * bytes_of_state
        source, target = spare, spare
        if job.state != 0:
            held = state_at(job, shape, place.slot, place.head * group + r)
            source = held if begin <= place.kept else spare
            target = held if end <= place.kept else spare
        elif begin == 0:
            for at in range(0, bytes_of_state, LINE):
                simd.store(spare + at, simd.fill(0.0))
        rows = (desk.q, desk.k, desk.v + r * pitch, desk.out)
        lists = 4 * CHUNK * r
        size = (shape.key_width, pitch)
        if quick:
            gates = (desk.decays + lists, desk.betas + lists)
            then = source + bytes_of_state if r + 1 < group else ahead
            steps(source, target, size, tokens, rows, group * pitch, gates, then)
        else:
            gates = (desk.logs + lists, desk.betas + lists)
            products = (desk.turned, desk.kk, desk.qk)
            room = (desk.high, desk.low, desk.left, desk.system, desk.weights, desk.right)
            chunk(source, target, size, padded, rows, group * pitch, gates, products, room)
        for t in range(max(begin, place.replays), end):
            finish(job, shape, place, place.head * group + r, t, desk.out + (t - begin) * pitch)


@inline
def finish(job: Job, shape: Shape, place: Place, head: int, token: int, row: int) -> None:
    """The norm of one head's output of a token, times silu(z)."""
    size = 4 * shape.value_width
    squares = simd.fill(0.0)
    for at in range(0, size, LINE):
        x = simd.load(row + at)
        squares = simd.fma(x, x, squares)
    mean = simd.total(squares) / np.float32(shape.value_width)
    factor = simd.fill(1.0) / simd.root(simd.fill(mean) + simd.as_float(simd.fill_i32(job.eps)))
    token += place.start - place.replays
    channel = 2 * shape.key_heads * shape.key_width + shape.value_heads * shape.value_width
    z = job.projected + token * job.projected_pitch + 4 * channel + head * size
    out = job.out + token * job.out_pitch + head * size
    for at in range(0, size, LINE):
        x = simd.load(row + at) * factor * simd.load(job.norm + at)
        simd.store(out + at, x * activations.silu(simd.load(z + at)))
