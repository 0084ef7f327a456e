"""The short causal convolution with SiLU, and the inputs that sequences leave behind for it.

Called by `delta_net` for some neighbouring channels of one sequence. Rows of inputs are fp32, one token each;
the history is the W - 1 rows before the first. States are [channels, columns], of fp32 or bf16 (`half`).
Invariant: only `past = W - 1` columns of a state are read, those after the replayed ones.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from . import activations, simd
from .jit import inline
from .simd import F32, I16, I32, VF, Build, address, f32x16, op, read, types, write

LINE, LANES = 64, 16


@op(f32x16, address, address)
def gather(build: Build, p: Any, pitch: Any) -> Any:
    """16 floats, `pitch` bytes from one to the next."""
    found = ir.Constant(VF, ir.Undefined)
    for lane in range(LANES):
        found = build.insert_element(found, read(build, p, F32), ir.Constant(I32, lane))
        p = build.add(p, pitch)
    return found


@op(f32x16, address, address)
def gather_bf16(build: Build, p: Any, pitch: Any) -> Any:
    found = ir.Constant(ir.VectorType(I16, LANES), ir.Undefined)
    for lane in range(LANES):
        found = build.insert_element(found, read(build, p, I16), ir.Constant(I32, lane))
        p = build.add(p, pitch)
    kind = ir.VectorType(I32, LANES)
    return build.bitcast(build.shl(build.zext(found, kind), ir.Constant(kind, [16] * LANES)), VF)


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
        for j in range(past):
            place = state + size * (c * columns + first + j)
            x = gather_bf16(place, size * columns) if half else gather(place, size * columns)
            simd.store(rows + j * pitch + 4 * c, x)


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
def convolve(
    inputs: tuple[int, int, int, int],
    weight: tuple[int, int, int],
    span: tuple[int, int],
    channels: int,
    out: tuple[int, int],
) -> None:
    """silu(convolution) at tokens `span` (first, count). `inputs`: where those of token 0 begin, with their
    pitch, and where those before it end, with theirs; `weight`: taps [W, channels], their pitch, W."""
    rows, pitch, history, history_pitch = inputs
    taps, taps_pitch, width = weight
    first, count = span
    for t in range(first, first + count):
        for c in range(0, 4 * channels, LINE):
            found = simd.fill(0.0)
            for tap in range(width):
                row = row_at(t - width + 1 + tap, rows, pitch, history, history_pitch)
                found = simd.fma(simd.load(row + c), simd.load(taps + tap * taps_pitch + c), found)
            simd.store(out[0] + (t - first) * out[1] + c, activations.silu(found))
