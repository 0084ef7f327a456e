"""The sparse half: router scores to chosen experts, and their SwiGLU products, for one token or thousands.

Called by `model`'s packed layers. A shared expert is one or several more that every token chooses. Every
thread takes a share of every expert's rows, so that a token's experts are added in one order by one thread:
its result is the same to the bit whoever runs beside it, however many threads there are.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor

from ..packed import ROWS, Packed
from .activations import silu
from .dot import at_once, code_of, dot
from .inputs import Inputs, quantise_row
from .jit import inline, reader
from .linear import Matrix
from .simd import copy, fill, fma, load, peek, peek_i32, poke, poke_i32, poke_word, spread, store, word
from .task import Task
from .tiles import DESK, SPARE, tiled
from .unit import leave_unit, take_unit
from .workspace import Workspace

BLOCK = 256  # tokens of one expert that are multiplied at a time: they stay in a core's cache
WAVE = 4096  # pairs, about, that are floats between the products at a time, before they are codes
FEW = 16  # tokens whose experts one thread chooses sooner than two


class Experts:
    """Where each expert's matrices are: `gate_up` [E], rows of gate and up in turn, 16 by 16; `down` [E]; and
    perhaps those of shared ones [S] of the same shape and kind, which come last."""

    def __init__(self, gate_up: Packed, down: Packed, shared: tuple[Packed, Packed] | None) -> None:
        for own, other in zip((gate_up, down), shared or (), strict=False):
            assert own.data.shape[1:] == other.data.shape[1:]
            assert (own.kind, own.group) == (other.kind, other.group)
        self.gate_up, self.down = Matrix(gate_up), Matrix(down)
        self.count, self.shared = len(gate_up.data), len(shared[0].data) if shared else 0
        self._memory = gate_up, down, shared
        self.first, self.second = (
            torch.tensor([place for each in kinds for place in _addresses(each)])
            for kinds in zip((gate_up, down), *([shared] if shared else []), strict=True)
        )


def _addresses(each: Packed) -> list[tuple[int, int]]:
    """Of data and scales of each expert."""
    scales = each.scales if each.scales.numel() else [each.scales] * len(each.data)
    return [(data.data_ptr(), scale.data_ptr()) for data, scale in zip(each.data, scales, strict=True)]


class Choice(NamedTuple):
    """The experts [T, k + S] of each token, shared ones last, and their weights; and all pairs sorted by
    expert, then token: where each expert's begin [E + S + 1], their tokens [P] and weights [P]."""

    experts: Tensor
    weights: Tensor
    begins: Tensor
    tokens: Tensor
    shares: Tensor


def choose(
    logits_TR: Tensor, experts: int, top_k: int, workspace: Workspace, *, normalise: bool, shared: int
) -> Choice:
    """Router scores [T, R] fp32, R >= experts (+ 1: the gate of all `shared` ones) -> who computes what,
    until `workspace` is asked for another choice.

    Of equals the lower number comes first."""
    tokens = len(logits_TR)
    assert logits_TR.dtype == torch.float32 and logits_TR.is_contiguous()
    assert top_k <= experts and logits_TR.shape[1] >= experts + min(shared, 1)
    picks = top_k + shared
    choice = Choice(
        workspace.take("choice.experts", (tokens, picks), torch.int32),
        workspace.take("choice.weights", (tokens, picks), torch.float32),
        workspace.take("choice.begins", (experts + shared + 1,), torch.int64),
        workspace.take("choice.tokens", (tokens * picks,), torch.int64),
        workspace.take("choice.shares", (tokens * picks,), torch.float32),
    )
    scores = logits_TR.data_ptr(), 4 * logits_TR.shape[1]
    numbers = (tokens, *scores, experts, top_k, picks, normalise, *(each.data_ptr() for each in choice))
    workspace.run(choosing, array("q", numbers), 1 if tokens < FEW else tokens)
    return choice


def mix(
    inputs: Inputs,
    choice: Choice,
    experts: Experts,
    residual_TH: Tensor,
    out_TH: Tensor,
    workspace: Workspace,
) -> Tensor:
    """`residual` plus each token's experts, weighted, into `out` [T, H] fp32."""
    gate_up, down, tokens, pairs = experts.gate_up, experts.down, inputs.tokens, len(choice.tokens)
    inner, outer, threads = gate_up.blocks // 2, down.blocks, numba.get_num_threads()
    coded = gate_up.coded(inputs.made())
    assert residual_TH.shape == out_TH.shape == (tokens, down.columns) and down.width >= ROWS * inner
    assert out_TH.dtype == residual_TH.dtype == torch.float32
    assert out_TH.is_contiguous() and residual_TH.is_contiguous()
    width, groups = down.width, down.address[3] if coded else 0
    wave = WAVE if coded else pairs
    floats = workspace.address("experts.floats", 4 * min(pairs, wave + tokens) * width)
    mid = (
        width,
        workspace.address("experts.codes", (pairs + SPARE) * width) if coded else floats,
        workspace.address("experts.scales", 4 * (pairs + SPARE) * groups),
        workspace.address("experts.sums", 4 * pairs * groups),
    )
    block, desks = min(BLOCK, tokens), 0
    head = 64 * max(2 * block, 4 * inner, 2 * outer)  # of products; then rows, their scales and sums
    room = head + (block + SPARE) * inputs.width * (2 if coded else 4)
    if coded and tiled(pairs):
        desks = workspace.address("tiles", threads * DESK)
    numbers = (
        *(inputs.by_codes if coded else inputs.by_floats),
        *mid,
        floats,
        len(choice.begins) - 1,
        *(each.data_ptr() for each in choice[2:]),
        *gate_up.address[2:],
        experts.first.data_ptr(),
        *down.address[2:],
        experts.second.data_ptr(),
        tokens,
        pairs,
        inner,
        outer,
        block,
        head,
        room,
        workspace.address("experts.scratch", threads * room),
        residual_TH.data_ptr(),
        out_TH.data_ptr(),
        desks,
        code_of(down.bits, coded).address,
        coded,
    )
    for low in range(0, pairs, wave):
        workspace.run(widening, array("q", (*numbers, low, min(low + wave, pairs))), threads)
    workspace.run(narrowing, array("q", (*numbers, 0, pairs)), threads)
    return out_TH


class Choosing(NamedTuple):
    """A call of `choose`, as compiled code sees it: scores, bytes from row to row, and the parts of a
    `Choice`."""

    tokens: int
    scores: int
    step: int
    experts: int
    top_k: int
    picks: int
    normalise: int
    chosen: int
    weights: int
    begins: int
    pairs: int
    shares: int


read_choosing = reader(Choosing)


def choose_rows(address: int, thread: int, threads: int) -> None:
    """A thread's tokens."""
    job = read_choosing(address)
    for t in range(job.tokens * thread // threads, job.tokens * (thread + 1) // threads):
        row = 4 * t * job.picks
        choose_row(job.scores + t * job.step, job, job.chosen + row, job.weights + row)


@inline
def choose_row(scores: int, job: Choosing, chosen: int, weights: int) -> None:
    """Softmax over all experts of one token, its best `top_k`, and the shared ones that there is room for."""
    count, last = 0, 4 * (job.top_k - 1)
    for e in range(job.experts):
        score = peek(scores + 4 * e)
        if count < job.top_k:
            place, count = count, count + 1
        elif score > peek(scores + 4 * peek_i32(chosen + last)):
            place = job.top_k - 1
        else:
            continue
        while place > 0 and score > peek(scores + 4 * peek_i32(chosen + 4 * place - 4)):
            poke_i32(chosen + 4 * place, peek_i32(chosen + 4 * place - 4))
            place -= 1
        poke_i32(chosen + 4 * place, np.int32(e))
    peak, among = peek(scores + 4 * peek_i32(chosen)), np.float32(0)
    if job.normalise:
        for j in range(job.top_k):
            among += np.exp(peek(scores + 4 * peek_i32(chosen + 4 * j)) - peak)
    else:
        for e in range(job.experts):
            among += np.exp(peek(scores + 4 * e) - peak)
    for j in range(job.top_k):
        poke(weights + 4 * j, np.exp(peek(scores + 4 * peek_i32(chosen + 4 * j)) - peak) / among)
    if job.picks > job.top_k:
        gate = np.exp(-peek(scores + 4 * job.experts))
        for j in range(job.top_k, job.picks):
            poke_i32(chosen + 4 * j, np.int32(job.experts + j - job.top_k))
            poke(weights + 4 * j, np.float32(1) / (np.float32(1) + gate))


def sort_pairs(address: int, thread: int, threads: int) -> None:
    """All pairs by expert, then token, by counting: one thread's work. An expert's beginning moves on to
    its end while its pairs are put down, which is where the next one begins."""
    job = read_choosing(address)
    if thread:
        return
    begins, count, experts = job.begins, job.tokens * job.picks, job.experts + job.picks - job.top_k
    for e in range(experts + 1):
        poke_word(begins + 8 * e, 0)
    for pair in range(count):
        at = begins + 8 * peek_i32(job.chosen + 4 * pair) + 8
        poke_word(at, word(at) + 1)
    for e in range(experts):
        at = begins + 8 * e
        poke_word(at + 8, word(at + 8) + word(at))
    for pair in range(count):
        at = begins + 8 * peek_i32(job.chosen + 4 * pair)
        place = word(at)
        poke_word(at, place + 1)
        poke_word(job.pairs + 8 * place, pair // job.picks)
        poke(job.shares + 4 * place, peek(job.weights + 4 * pair))
    for e in range(experts, 0, -1):
        poke_word(begins + 8 * e, word(begins + 8 * e - 8))
    poke_word(begins, 0)


choosing = Task(choose_rows, sort_pairs)


class Mixing(NamedTuple):
    """A call of `mix`: the inputs as `dot.dot` takes them, then what goes between the two products (in codes
    or as `floats`), the `Choice`, both matrices without and with the experts' addresses, sizes and
    memory, and the products' code."""

    width: int
    rows: int
    row_scales: int
    row_sums: int
    mid_width: int
    mid_codes: int
    mid_scales: int
    mid_sums: int
    floats: int
    experts: int
    begins: int
    pair_tokens: int
    shares: int
    up_size: int
    up_groups: int
    up_group: int
    up_at: int
    down_size: int
    down_groups: int
    down_group: int
    down_at: int
    tokens: int
    pairs: int
    inner: int
    outer: int
    block: int
    head: int
    room: int
    scratch: int
    residual: int
    out: int
    desks: int
    code: int
    coded: int
    low: int
    high: int


read_mixing = reader(Mixing)


@inline
def gather(
    coded: int, groups: int, x: tuple[int, int, int, int], tokens: int, first: int, count: int, to: int
) -> tuple[int, int, int, int]:
    """The rows of `tokens[first : first + count]` side by side at `to` -> where they are, for `dot.dot`."""
    width, at, scales, sums = x
    size = width if coded else 4 * width
    to_scales = to + count * size
    to_sums = to_scales + count * groups * 4
    for i in range(count):
        t = word(tokens + 8 * (first + i))
        copy(to + i * size, at + t * size, size)
        if coded:
            copy(to_scales + i * groups * 4, scales + t * groups * 4, groups * 4)
            copy(to_sums + i * groups * 4, sums + t * groups * 4, groups * 4)
    return width, to, to_scales, to_sums


@inline
def widen(
    job: Mixing, weight: tuple[int, ...], base: int, begin: int, end: int, part: tuple[int, ...]
) -> None:
    """silu(gate x) * (up x) for the pairs of one expert, in a thread's part of the columns, into `floats`,
    which are those of `base` and later pairs."""
    low, high, here, desk = part
    x = (job.width, job.rows, job.row_scales, job.row_sums)
    for first in range(begin, end, job.block):
        count = min(job.block, end - first)
        own = gather(job.coded, weight[3], x, job.pair_tokens, first, count, here + job.head)
        some = at_once(count, high - low)
        for b in range(low, high, some):
            dot(job.code, weight, own, 2 * b, 2 * some, 0, count, here, 128 * some, desk)
            for i in range(count):
                at = here + 128 * some * i
                to = job.floats + 4 * (first + i - base) * job.mid_width + 64 * b
                for c in range(some):
                    store(to + 64 * c, silu(load(at + 128 * c)) * load(at + 128 * c + 64))


@inline
def narrow(job: Mixing, weight: tuple[int, ...], begin: int, end: int, part: tuple[int, ...]) -> None:
    """Add one expert's down products, weighted, to its tokens' rows of `out`, in a part of the columns."""
    low, high, here, desk = part
    mid = (job.mid_width, job.mid_codes, job.mid_scales, job.mid_sums)
    for first in range(begin, end, job.block):
        last = min(first + job.block, end)
        some = at_once(last - first, high - low)
        for b in range(low, high, some):
            dot(job.code, weight, mid, b, some, first, last, here, 64 * some, desk)
            for p in range(first, last):
                at, to = (
                    here + 64 * some * (p - first),
                    job.out + 64 * (word(job.pair_tokens + 8 * p) * job.outer + b),
                )
                for c in range(some):
                    value = load(at + 64 * c)
                    store(to + 64 * c, fma(spread(job.shares + 4 * p), value, load(to + 64 * c)))


@inline
def share_of(job: Mixing, blocks: int, thread: int, threads: int) -> tuple[int, int, int, int]:
    """A thread's blocks of columns, and its memory."""
    desk = job.desks + thread * DESK
    here = job.scratch + thread * job.room
    return blocks * thread // threads, blocks * (thread + 1) // threads, here, desk


@inline
def first_pair(job: Mixing, least: int) -> int:
    """Of the first expert whose pairs begin there or later."""
    at = job.begins
    if least == job.pairs:
        at += 8 * job.experts
    while word(at) < least:
        at += 8
    found: int = word(at)
    return found


def widen_all(address: int, thread: int, threads: int) -> None:
    job = read_mixing(address)
    part, base = share_of(job, job.inner, thread, threads), first_pair(job, job.low)
    take_unit(job.desks)
    for e in range(job.experts):
        begin, end, at = word(job.begins + 8 * e), word(job.begins + 8 * e + 8), job.up_at + 16 * e
        if begin < end and job.low <= begin < job.high:
            weight = (word(at), word(at + 8), job.up_size, job.up_groups, job.up_group)
            widen(job, weight, base, begin, end, part)
    leave_unit(job.desks)


def round_all(address: int, thread: int, threads: int) -> None:
    job = read_mixing(address)
    base, end = first_pair(job, job.low), first_pair(job, job.high)
    count = end - base
    for p in range(base + count * thread // threads, base + count * (thread + 1) // threads):
        row, at = job.floats + 4 * (p - base) * job.mid_width, 4 * p * job.down_groups
        for i in range(job.inner, job.mid_width // 16):
            store(row + 64 * i, fill(np.float32(0)))
        if job.coded:
            codes = job.mid_codes + p * job.mid_width
            quantise_row(row, job.mid_width, job.down_group, codes, job.mid_scales + at, job.mid_sums + at)


def narrow_all(address: int, thread: int, threads: int) -> None:
    job = read_mixing(address)
    part = share_of(job, job.outer, thread, threads)
    take_unit(job.desks)
    for t in range(job.tokens):
        at = 64 * (t * job.outer + part[0])
        copy(job.out + at, job.residual + at, 64 * (part[1] - part[0]))
    for e in range(job.experts):
        begin, end, at = word(job.begins + 8 * e), word(job.begins + 8 * e + 8), job.down_at + 16 * e
        if begin < end:
            weight = (word(at), word(at + 8), job.down_size, job.down_groups, job.down_group)
            narrow(job, weight, begin, end, part)
    leave_unit(job.desks)


widening, narrowing = Task(widen_all, round_all), Task(narrow_all)
