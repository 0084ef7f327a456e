"""Cross-entropy over a large vocabulary, and its gradient in the place of the logits."""

from __future__ import annotations

from torch import Tensor


def cross_entropy(
    logits_RV: Tensor, targets_R: Tensor, weights_R: Tensor, z_weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See `Ops.cross_entropy`."""
    logits = logits_RV.float()
    weights = weights_R.to(logits.dtype)[:, None]
    peak, top = logits.max(dim=1, keepdim=True)
    shifted, targets = logits - peak, targets_R[:, None]
    grown = shifted.exp()
    mass = grown.sum(dim=1, keepdim=True)
    losses, log_sums = mass.log() - shifted.gather(1, targets), mass.log() + peak
    pull = weights * (1 + 2 * z_weight * log_sums)  # d / d log-sum
    slopes = (grown * (pull / mass)).scatter_add_(1, targets, -weights)
    logits_RV.copy_(slopes)
    return losses.squeeze(1), log_sums.square().squeeze(1), top.squeeze(1)
