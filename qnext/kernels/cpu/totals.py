"""How much a whole vocabulary weighs: the sum of exponentials, without a copy of the scores.

Called by `drawing` and by `engine/reports`; its twin is `reference/drawing.log_totals`. Invariant: a row's
total depends on that row alone.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from . import simd
from .activations import exp
from .jit import kernel

LANES = 16


def log_totals(scores_RV: Tensor, heats_R: np.ndarray) -> Tensor:
    """log(sum(exp((score - the row's largest) / heat))) [R] fp32, of scores and temperatures in fp32. Raises
    ValueError for other kinds."""
    return torch.from_numpy(np.log(weights(scores_RV, heats_R)))


def weights(scores_RV: Tensor, heats_R: np.ndarray) -> np.ndarray:
    """sum(exp((score - the row's largest) / heat)) [R] fp32, in the same way."""
    rows, size = scores_RV.shape
    if scores_RV.dtype != torch.float32 or heats_R.dtype != np.float32 or heats_R.shape != (rows,):
        raise ValueError(f"kinds are {scores_RV.dtype}{[rows, size]} and {heats_R.dtype}{[*heats_R.shape]}")
    scores = scores_RV.contiguous().numpy()
    whole = size - size % LANES
    ends = np.full((rows, LANES), -np.inf, np.float32)  # of each row after its last whole vector
    ends[:, : size - whole] = scores[:, whole:]
    totals = np.empty(rows, np.float32)
    _totals(scores.ctypes.data, ends.ctypes.data, size, scores.max(-1), heats_R, totals)
    return totals


@kernel()
def _totals(scores, ends, size, peaks, heats, totals):  # type: ignore[no-untyped-def]
    for r in range(len(totals)):
        peak, cool = simd.fill(peaks[r]), simd.fill(np.float32(1) / heats[r])
        row = scores + 4 * r * size
        one = exp((simd.load(ends + 64 * r) - peak) * cool)
        other = simd.fill(np.float32(0))
        for i in range(size // 32):
            one = one + exp((simd.load(row + 128 * i) - peak) * cool)
            other = other + exp((simd.load(row + 128 * i + 64) - peak) * cool)
        if size // 16 % 2:
            other = other + exp((simd.load(row + 64 * (size // 16 - 1)) - peak) * cool)
        totals[r] = simd.total(one + other)
