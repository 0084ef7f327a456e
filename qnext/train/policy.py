"""The policy: what the model that learns says of answers that were drawn before.

Called by `reinforcement`. Invariant: for the weights that drew an answer it gives the log-probabilities that
were told with it, within float error, and the scores of a whole row [T, V] never exist at once.

Legend: T tokens of a row, R tokens of its answers, H hidden, V vocabulary, E experts, k chosen ones.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from qnext.kernels.ops import Ops
from qnext.kernels.select import backend
from qnext.model.packing import Packing
from qnext.model.qwen3_next import Qwen3Next

from .rollout import Row

ROWS_PER_CHUNK = 512


def answer_log_probs(model: Qwen3Next, row: Row, temperature: float) -> tuple[Tensor, Tensor]:
    """Of each token of the row's answers: its log-probability, and the entropy of what it was drawn from, in
    nats at `temperature` [R]. Gradients reach the model through the first."""
    packing = Packing.of(row.lengths, device=row.ids.device)
    ops = None if row.experts is None else replaying(model, row.experts)
    hidden = model(row.ids, packing, ops=ops)[row.places - 1]
    head = (model.lm_head or model.embed_tokens).weight
    told = partial(checkpoint, _told, use_reentrant=False, preserve_rng_state=False)
    parts = [
        told(hidden[start : start + ROWS_PER_CHUNK], head, row.ids[places], temperature)
        for start, places in zip(
            range(0, len(row.places), ROWS_PER_CHUNK), row.places.split(ROWS_PER_CHUNK), strict=True
        )
    ]
    log_probs, entropy = (torch.cat(each) for each in zip(*parts, strict=True))
    return log_probs, entropy.detach()


def _told(hidden_RH: Tensor, head_VH: Tensor, targets_R: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    scores = (F.linear(hidden_RH, head_VH).float() / temperature).log_softmax(-1)
    entropy = -(scores.detach().exp() * scores.detach()).sum(-1)
    return scores.gather(1, targets_R[:, None]).squeeze(1), entropy


def replaying(model: Qwen3Next, experts_TLk: Tensor) -> list[Ops]:
    """The device's ops for each layer, where tokens go to the experts that they went to before."""
    ops, recorded = backend(experts_TLk.device.type), iter(experts_TLk.unbind(1))
    layers = range(model.config.num_hidden_layers)
    found: list[Any] = [Replay(ops, next(recorded)) if model.config.is_sparse(i) else ops for i in layers]
    return found


class Replay:
    """A backend whose router is told the answer [T, k] (where it is negative it chooses itself):
    probabilities and weights, and so gradients, are those of the weights as they are now."""

    def __init__(self, ops: Ops, experts_Tk: Tensor) -> None:
        self._ops, self._experts = ops, experts_Tk

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ops, name)

    def route(self, logits_TE: Tensor, top_k: int, normalise: bool) -> tuple[Tensor, Tensor, Tensor]:
        """See `Ops.route`."""
        probs, _, own = self._ops.route(logits_TE, top_k, normalise)
        chosen = torch.where(self._experts < 0, own, self._experts)
        weights = probs.gather(1, chosen)
        if normalise:
            weights = weights / weights.sum(-1, keepdim=True)
        return probs, weights, chosen
