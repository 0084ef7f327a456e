"""Cross-entropy over a large vocabulary: a row of logits becomes its gradient where it stands."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .. import reference
from .numbers import array, computes, exp, loops, one, put, wide, zero


def cross_entropy(
    logits_RV: Tensor, targets_R: Tensor, weights_R: Tensor, z_weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See `Ops.cross_entropy`."""
    if not computes(logits_RV):
        return reference.cross_entropy(logits_RV, targets_R, weights_R, z_weight)
    losses, squares = torch.empty(len(logits_RV)), torch.empty(len(logits_RV))
    top = torch.empty_like(targets_R)
    slopes(
        *(array(each) for each in (logits_RV, targets_R, weights_R.float())),
        z_weight,
        *(array(each) for each in (losses, squares, top)),
    )
    return losses, squares, top


@loops
def slopes(logits_RV, targets_R, weights_R, z_weight, losses_R, squares_R, top_R):  # type: ignore[no-untyped-def]
    rows, words = logits_RV.shape
    grown = np.empty(words, np.float32)
    for r in range(rows):
        logits, target, weight = logits_RV[r], targets_R[r], weights_R[r]
        for w in range(words):
            grown[w] = wide(logits[w])
        peak, total = grown[0], zero
        for w in range(words):
            peak = max(peak, grown[w])
        top = 0
        while top < words - 1 and grown[top] != peak:
            top += 1
        aimed = grown[target] - peak
        for w in range(words):
            grown[w] = exp(grown[w] - peak)
            total += grown[w]
        log_total = np.log(total)
        log_sum = log_total + peak
        losses_R[r], squares_R[r], top_R[r] = log_total - aimed, log_sum * log_sum, top
        pull = weight * (one + np.float32(2) * np.float32(z_weight) * log_sum) / total
        for w in range(words):
            put(logits, w, pull * grown[w])
        put(logits, target, pull * grown[target] - weight)
