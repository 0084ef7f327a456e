"""The short causal convolution with SiLU, and the inputs that sequences leave behind for it.

Called by `delta_net` for some neighbouring channels of one sequence. Rows of inputs are fp32, one token each;
the history is the W - 1 rows before the first. States are [channels, columns], of fp32 or bf16 (`half`).
Invariant: only `past = W - 1` columns of a state are read, those after the replayed ones.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from . import activations, isa, simd
from .jit import inline
from .simd import F32, I16, I32, I64, VF, Build, address, call, f32x16, op, read, splat, types, write

LINE, LANES = 64, 16


def gathered(build: Build, p: Any, pitch: Any, kind: ir.Type) -> Any:
    found = ir.Constant(ir.VectorType(kind, LANES), ir.Undefined)
    for lane in range(LANES):
        found = build.insert_element(found, read(build, p, kind), ir.Constant(I32, lane))
        p = build.add(p, pitch)
    return found


def widened(build: Build, x: Any) -> Any:
    """16 bf16 as floats."""
    kind = ir.VectorType(I32, LANES)
    return build.bitcast(build.shl(build.zext(x, kind), ir.Constant(kind, [16] * LANES)), VF)


@op(f32x16, address, address)
def gather(build: Build, p: Any, pitch: Any) -> Any:
    """16 floats, `pitch` bytes from one to the next."""
    return gathered(build, p, pitch, F32)


@op(f32x16, address, address)
def gather_bf16(build: Build, p: Any, pitch: Any) -> Any:
    return widened(build, gathered(build, p, pitch, I16))


@op(f32x16, address, address, address)
def column_bf16(build: Build, p: Any, columns: Any, column: Any) -> Any:
    """A column of 16 channels with 2 to 4 columns (vpermt2w)."""
    if not isa.has("avx512vnni"):
        first = build.add(p, build.shl(column, ir.Constant(I64, 1)))
        return widened(build, gathered(build, first, build.shl(columns, ir.Constant(I64, 1)), I16))
    kind = ir.VectorType(I16, 32)
    words = build.mul(columns, ir.Constant(I64, LANES))  # the first 32 of them, and the last 32
    low = read(build, p, kind)
    late = build.sub(words, ir.Constant(I64, 32))
    high = read(build, build.add(p, build.shl(late, ir.Constant(I64, 1))), kind)
    step, first, late = (splat(build, build.trunc(x, I16), kind) for x in (columns, column, late))
    lanes = ir.Constant(kind, [lane % LANES for lane in range(32)])
    index = build.add(build.mul(lanes, step), first)
    limit = ir.Constant(kind, [32] * 32)
    index = build.select(
        build.icmp_unsigned("<", index, limit), index, build.sub(build.add(index, limit), late)
    )
    found = call(build, "llvm.x86.avx512.vpermi2var.hi.512", kind, low, index, high)
    places = ir.Constant(ir.VectorType(I32, LANES), list(range(LANES)))
    return widened(build, build.shuffle_vector(found, found, places))


@op(types.void, address, address)
def copy_32(build: Build, source: Any, target: Any) -> None:
    """32 bytes."""
    write(build, read(build, source, ir.VectorType(I16, LANES)), target)


@op(types.void, address, address, f32x16)
def scatter(build: Build, p: Any, pitch: Any, x: Any) -> None:
    for lane in range(LANES):
        write(build, build.extract_element(x, ir.Constant(I32, lane)), p)
        p = build.add(p, pitch)


@op(types.void, address, address, address)
def scatter_i16(build: Build, p: Any, pitch: Any, source: Any) -> None:
    """16 neighbours of 2 bytes to places `pitch` bytes apart."""
    found = read(build, source, ir.VectorType(I16, LANES))
    for lane in range(LANES):
        write(build, build.extract_element(found, ir.Constant(I32, lane)), p)
        p = build.add(p, pitch)


@inline
def recall(
    state: int, half: int, columns: int, first: int, past: int, channels: int, rows: int, pitch: int
) -> None:
    """Lay the `past` columns of a state from `first` on out as rows."""
    size = 4 - 2 * half
    for c in range(0, channels, LANES):
        block = state + size * c * columns
        for j in range(past):
            if not half:
                x = gather(block + size * (first + j), size * columns)
            elif 2 <= columns <= 4:
                x = column_bf16(block, columns, first + j)
            else:
                x = gather_bf16(block + size * (first + j), size * columns)
            simd.store(rows + j * pitch + 4 * c, x)


@inline
def slide(state: int, count: int, distance: int) -> None:
    """Move a state's bytes down, so that its first columns are later ones. `count` is a multiple of 32, and
    behind the bytes lie `distance` more. (The last columns then hold anything.)"""
    for at in range(0, count, 32):
        copy_32(state + at + distance, state + at)


@inline
def keep(state: int, half: int, columns: int, column: int, channels: int, row: int, desk: int) -> None:
    """Make a row of inputs a column of a state. `desk`: 32 bytes to work on."""
    size = 4 - 2 * half
    for c in range(0, channels, LANES):
        place = state + size * (c * columns + column)
        x = simd.load(row + 4 * c)
        if half:
            simd.store_bf16(desk, x)
            scatter_i16(place, size * columns, desk)
        else:
            scatter(place, size * columns, x)


@inline
def row_at(index: int, rows: int, pitch: int, history: int, history_pitch: int) -> int:
    """Where the inputs of a token are: before token 0, in the history, which ends at `history`."""
    if index < 0:
        return history + index * history_pitch
    return rows + index * pitch


@inline
def lay_rows(
    inputs: tuple[int, int, int, int], first: int, count: int, channels: int, rows: int, pitch: int
) -> None:
    """Copy the inputs of tokens from `first` on: in the network's row they lie far apart, where few lines of
    a cache can hold them. `inputs`: where token 0's begin, with their pitch, and where those before it end,
    with theirs."""
    for i in range(count):
        row = row_at(first + i, inputs[0], inputs[1], inputs[2], inputs[3])
        for c in range(0, 4 * channels, LINE):
            simd.store(rows + i * pitch + c, simd.load(row + c))


@inline
def convolve(
    rows: tuple[int, int], weight: tuple[int, int, int], count: int, channels: int, out: tuple[int, int]
) -> None:
    """silu(convolution) for some tokens. `rows`: where the inputs of the first one's W taps begin, and their
    pitch; `weight`: taps [W, channels], their pitch, W."""
    begin, pitch = rows
    taps, taps_pitch, width = weight
    for t in range(count):
        for c in range(0, 4 * channels, LINE):
            found = simd.fill(0.0)
            for tap in range(width):
                x = simd.load(begin + (t + tap) * pitch + c)
                found = simd.fma(x, simd.load(taps + tap * taps_pitch + c), found)
            simd.store(out[0] + t * out[1] + c, activations.silu(found))
