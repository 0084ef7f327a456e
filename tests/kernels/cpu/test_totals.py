"""Totals of a vocabulary equal their twin."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qnext.kernels.cpu.totals import log_totals


def twin(scores_RV: torch.Tensor, heats: np.ndarray) -> torch.Tensor:
    below = (scores_RV - scores_RV.amax(-1, keepdim=True)).double()
    return (below / torch.from_numpy(heats)[:, None]).logsumexp(-1)


@pytest.mark.parametrize("size", [1, 15, 16, 17, 31, 32, 33, 48, 4096, 151_937])
@pytest.mark.parametrize("spread", [0.0, 1.0, 20.0])
def test_it_equals_its_twin(size: int, spread: float) -> None:
    scores = torch.randn(3, size, generator=torch.Generator().manual_seed(size)) * spread
    scores[1, size // 2 :] = -torch.inf  # forbidden
    scores[1, 0] = 3.0
    heats = np.asarray([1.0, 0.6, 1e-6], np.float32)
    assert (log_totals(scores, heats) - twin(scores, heats)).abs().max() < 1e-4
    assert torch.equal(log_totals(scores[2:], heats[2:]), log_totals(scores, heats)[2:])


def test_other_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match=r"torch\.float64\[2, 3\] and float32\[2\]"):
        log_totals(torch.zeros(2, 3, dtype=torch.float64), np.ones(2, np.float32))
    with pytest.raises(ValueError, match=r"float32\[1\]"):
        log_totals(torch.zeros(2, 3), np.ones(1, np.float32))
