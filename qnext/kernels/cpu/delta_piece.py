"""One sequence's part of a row through one key head of a linear layer, and the value heads that share it.

Called by `delta_net` from many threads. A piece is cut where its state is wanted (after `saves`, and before
drafts); short stretches between cuts take the step form, longer ones the chunked form, 32 or 16 tokens at a
time, and the rest the step form.
Invariant: reads and writes only its own head's part of every tensor; outputs of replayed tokens go nowhere.
"""

from __future__ import annotations

import numpy as np

from . import activations, convolution, simd
from .delta_chunk import CHUNK, by_unit, chunk, pairs
from .delta_job import (
    Desk,
    Job,
    Place,
    Shape,
    channels_of,
    conv_at,
    lay,
    place_of,
    read_job,
    save_at,
    spans,
    state_at,
)
from .delta_step import steps
from .jit import inline
from .unit import leave_unit, take_unit

STEP_LIMIT = 16  # longest stretch that takes the step form
LINE, LANES = 64, 16
AHEAD = 3  # tokens: rows are too far apart for the machine's prefetcher


def pieces(job_address: int, thread: int, threads: int) -> None:
    """A thread's share of a call: of each sequence some neighbouring heads. (Where threads take turns at
    neighbours, what one's prefetcher runs ahead to is what the other writes: a third slower.)"""
    job = read_job(job_address)
    shape = Shape(job.key_heads, job.key_width, job.value_heads, job.value_width, job.width)
    desk = lay(job.desks + thread * job.desk_size, shape)
    for n in range(job.sequences):
        turn = (thread + n) % threads  # shares differ by a head: not always the same thread has more
        end = shape.key_heads * (turn + 1) // threads
        for head in range(shape.key_heads * turn // threads, end):
            if head + 1 < end:
                summon(job, shape, place_of(job, shape, n, head + 1))
            piece(job, shape, place_of(job, shape, n, head), desk)


@inline
def summon(job: Job, shape: Shape, place: Place) -> None:
    """Ask for the small things that a head will need: too short to be noticed by the machine's prefetcher."""
    width = 2 * shape.key_width + shape.value_heads // shape.key_heads * shape.value_width
    for at in range(0, 4 * shape.taps * width, LINE):
        simd.prefetch(job.taps + 4 * shape.taps * width * place.head + at)
    if job.state != 0:
        for channel, _, count in spans(shape, place.head):
            for j in range(shape.taps - 1):
                inputs = conv_at(job, shape, place.slot, place.replays + j, channel)
                for at in range(0, (4 - 2 * job.conv_half) * count, LINE):
                    simd.prefetch(inputs + at)


@inline
def piece(job: Job, shape: Shape, place: Place, desk: Desk) -> None:
    """All of one sequence and key head."""
    group = shape.value_heads // shape.key_heads
    history_pitch = 4 * (2 * shape.key_width + group * shape.value_width)
    recall(job, shape, place, desk, history_pitch)
    begin = np.int64(0)  # not a literal, for which all that takes it would be compiled a second time
    while begin < place.total:
        end = next_cut(job, place, begin)
        take(job, shape, place, desk, history_pitch, begin, end)
        advance(job, shape, place, desk, begin, end)
        for i in range(job.save_count):
            n, count, slot = save_at(job, i)
            if n == place.sequence and place.replays + count == end:
                copy_state(job, shape, place, slot)
        begin = end
    if job.state != 0:
        leave(job, shape, place, desk, history_pitch)


@inline
def next_cut(job: Job, place: Place, begin: int) -> int:
    """Where the stretch from `begin` on ends: in front of the drafts, where a state is saved, and for the
    chunked form after a multiple of 16 tokens."""
    end = place.total
    if begin < place.kept:
        end = place.kept
    for i in range(job.save_count):
        n, count, _ = save_at(job, i)
        if n == place.sequence and begin < place.replays + count < end:
            end = place.replays + count
    if end - begin > STEP_LIMIT:
        end = begin + min((end - begin) // LANES * LANES, CHUNK)
    return end


@inline
def recall(job: Job, shape: Shape, place: Place, desk: Desk, pitch: int) -> None:
    """The inputs of the convolution before the sequence's first token here."""
    past = shape.taps - 1
    if job.state == 0:
        for at in range(0, past * pitch, LINE):
            simd.store(desk.history + at, simd.fill(0.0))
        return
    for channel, at, count in spans(shape, place.head):
        for j in range(past):
            inputs = conv_at(job, shape, place.slot, place.replays + j, channel)
            transfer(desk.history + j * pitch + 4 * at, inputs, count, job.conv_half, False)


@inline
def leave(job: Job, shape: Shape, place: Place, desk: Desk, pitch: int) -> None:
    """The last inputs that are certain, then the drafted ones, into the convolution's state; and those before
    each cut into the slots of `saves`."""
    past, drafts = shape.taps - 1, place.total - place.kept
    certain = place.kept - place.replays
    leave_rows(job, shape, place, desk, pitch, (place.slot, certain - past, past + drafts))
    for i in range(job.save_count):
        n, count, slot = save_at(job, i)
        if n == place.sequence:
            leave_rows(job, shape, place, desk, pitch, (slot, count - past, past))


@inline
def leave_rows(
    job: Job, shape: Shape, place: Place, desk: Desk, pitch: int, span: tuple[int, int, int]
) -> None:
    """Inputs of own tokens into a slot's first rows. `span`: slot, first token (below 0: in the history) and
    count."""
    slot, first, count = span
    for channel, at, width in spans(shape, place.head):
        rows = job.projected + place.start * job.projected_pitch + 4 * channel
        history = desk.history + (shape.taps - 1) * pitch + 4 * at
        for j in range(count):
            row = convolution.row_at(first + j, rows, job.projected_pitch, history, pitch)
            transfer(row, conv_at(job, shape, slot, j, channel), width, job.conv_half, True)


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
    taps = job.taps + place.head * shape.taps * history_pitch
    for i, (channel, at, channels) in enumerate(spans(shape, place.head)):
        pitch = values if i == 2 else keys
        out = (desk.q, desk.k, desk.v)[i] + replayed * pitch
        rows = job.projected + place.start * job.projected_pitch + 4 * channel
        history = desk.history + past * history_pitch + 4 * at
        inputs = (rows, job.projected_pitch, history, history_pitch)
        near, near_pitch = desk.rows + 4 * at, history_pitch + LINE
        convolution.lay_rows(inputs, first - past, past + count, channels, near, near_pitch)
        weight = (taps + 4 * at, history_pitch, shape.taps)
        convolution.convolve((near, near_pitch), weight, count, channels, (out, pitch))
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
def dot(q: int, k: int, size: int, token: int) -> float:
    """k q of a token."""
    found = simd.fill(0.0)
    for at in range(token * size, token * size + size, LINE):
        found = simd.fma(simd.load(q + at), simd.load(k + at), found)
    product: float = simd.total(found)
    return product


@inline
def advance(job: Job, shape: Shape, place: Place, desk: Desk, begin: int, end: int) -> None:
    """The delta rule over the tokens on the desk, for each value head of the key head, and their outputs.
    Drafts go on from the state, on the desk."""
    tokens, group, pitch = end - begin, shape.value_heads // shape.key_heads, 4 * shape.value_width
    bytes_of_state = shape.key_width * pitch
    quick, unit = tokens <= STEP_LIMIT, by_unit(not job.exact, shape.key_width, tokens)
    take_unit(unit)
    if quick:
        for t in range(tokens):
            simd.poke(desk.matches + 4 * t, dot(desk.q, desk.k, 4 * shape.key_width, t))
    else:
        pairs(desk.q, desk.k, shape.key_width, tokens, (desk.turned, desk.kk, desk.qk), unit, desk.halves)
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
            gates = (desk.decays + lists, desk.betas + lists, desk.matches)
            steps(source, target, size, tokens, rows, group * pitch, gates)
        else:
            products = (desk.turned, desk.kk, desk.qk)
            room = (desk.high, desk.low, desk.left, desk.system, desk.weights, desk.right)
            lists_of = (desk.logs + lists, desk.betas + lists)
            chunk(
                source, target, size, tokens, rows, group * pitch, lists_of, products, room, unit, desk.halves
            )
        for t in range(max(begin, place.replays), end):
            finish(job, shape, place, place.head * group + r, t, desk.out + (t - begin) * pitch)
    leave_unit(unit)


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
    channel = channels_of(shape)
    z = job.projected + token * job.projected_pitch + 4 * channel + head * size
    out = job.out + token * job.out_pitch + head * size
    for at in range(0, size, LINE):
        simd.prefetch(z + AHEAD * job.projected_pitch + at)
        simd.prefetch(out + AHEAD * job.out_pitch + at)
        x = simd.load(row + at) * factor * simd.load(job.norm + at)
        simd.store(out + at, x * activations.silu(simd.load(z + at)))
