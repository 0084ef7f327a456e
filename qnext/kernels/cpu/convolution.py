"""The short causal convolution with SiLU, and the inputs that it looks back at.

Called by `delta_piece` for some neighbouring channels of one sequence. Rows of inputs are fp32, one token
each; the history is the W - 1 rows before the first. Invariant: a token's output depends on its own inputs
and on those of the W - 1 tokens before it.
"""

from __future__ import annotations

from . import activations, simd
from .jit import inline

LINE = 64


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
