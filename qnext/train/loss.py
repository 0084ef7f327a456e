"""The training loss: next-token and next-next-token cross-entropy plus the router's balance loss.

The trainer calls `total` once per micro-step. Invariant: the logits of a whole row [T, V] never exist at
once, and a token of weight 0 costs no logits at all.

Shapes: T tokens of the row, R rows that are learned from, H hidden, V vocabulary, E experts, k chosen ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from qnext.model.layers import Routing
from qnext.model.packing import Packing
from qnext.model.qwen3_next import Qwen3Next

from .batch import Batch

ROWS_PER_CHUNK = 512


@dataclass
class Tally:
    """Sums over the batches seen since the last report; `means` turns them into metrics."""

    tokens: int = 0
    seconds: float = 0.0  # left to the trainer
    weight: float = 0.0  # of next-token rows
    nll: float = 0.0
    mtp_weight: float = 0.0
    mtp_nll: float = 0.0
    mtp_rows: int = 0
    mtp_accepted: int = 0  # rows where the drafted top token is the model's own top token
    batches: int = 0
    router: float = 0.0  # the unweighted balance loss
    busiest: float = 0.0  # load of the busiest expert of any layer, over the fair load

    def add(self, other: "Tally") -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))

    def means(self) -> dict[str, float]:
        """Metrics in nats per token; a part the model does not have is left out."""
        metrics = {"nll": self.nll / max(self.weight, 1e-9)}
        if self.mtp_rows:
            metrics["mtp_nll"] = self.mtp_nll / self.mtp_weight
            metrics["mtp_acceptance"] = self.mtp_accepted / self.mtp_rows
        if self.router:
            metrics["router"] = self.router / self.batches
            metrics["busiest_expert"] = self.busiest / self.batches
        return metrics


def total(
    model: Qwen3Next, batch: Batch, *, denominator: float, mtp_weight: float, router_weight: float
) -> tuple[Tensor, Tally]:
    """The loss of one micro-step, ready for `backward`, and what it was made of.

    Cross-entropies are weighted sums over tokens, divided by `denominator`: the token weight of the whole
    step, so that accumulated micro-steps equal one long row. Weight 0 leaves a part out.
    """
    packing = Packing.of(batch.lengths, device=batch.ids.device)
    head = (model.lm_head or model.embed_tokens).weight
    routing: Routing = []
    hidden = model(batch.ids, packing, routing=routing)
    tally = Tally(tokens=len(batch.ids), batches=1)

    learned = batch.weights.nonzero().flatten()  # positions of the tokens to predict
    weights = batch.weights[learned]
    nll, top = cross_entropy(hidden[learned - 1], head, batch.ids[learned], weights)
    loss = nll / denominator
    tally.weight, tally.nll = float(weights.sum()), float(nll.detach())

    if model.config.mtp_layers and mtp_weight:
        drafted = hidden_two_back = learned[twice_inside(learned, batch.lengths)]
        next_ids = batch.ids.roll(-1)  # at a document's last token this is noise, seen by no learned row
        mtp_hidden = model.mtp_hidden(hidden, next_ids, packing, routing=routing)
        weights = batch.weights[drafted]
        nll, draft_top = cross_entropy(mtp_hidden[hidden_two_back - 2], head, batch.ids[drafted], weights)
        loss = loss + mtp_weight * nll / denominator
        own_top = torch.empty_like(batch.ids).index_put((learned,), top)[drafted]
        tally.mtp_weight, tally.mtp_nll = float(weights.sum()), float(nll.detach())
        tally.mtp_rows, tally.mtp_accepted = len(drafted), int((own_top == draft_top).sum())

    if routing and router_weight:
        balance = router_loss(routing)
        loss = loss + router_weight * balance
        tally.router, tally.busiest = float(balance.detach()), busiest_expert(routing)
    return loss, tally


def cross_entropy(hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted sum of -log softmax(hidden @ head.T)[target] in fp32 (scalar), and the top token of each row.

    hidden [R, H], head [V, H], targets [R] int64, weights [R]. Gradients reach `hidden` and `head`.
    """
    loss, top = _LinearCrossEntropy.apply(hidden, head, targets, weights)  # type: ignore[no-untyped-call]
    return loss, top


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes its gradients in the forward, chunk by chunk: the logits are made once and never kept."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor
    ) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        matrix = head.to(dtype)
        learns = any(ctx.needs_input_grad[:2])
        loss = hidden.new_zeros((), dtype=torch.float32)
        top = torch.empty_like(targets)
        hidden_grad = torch.empty_like(hidden) if learns else None
        head_grad = torch.zeros_like(head) if learns else None
        for start in range(0, len(targets), ROWS_PER_CHUNK):
            rows = slice(start, start + ROWS_PER_CHUNK)
            x, target, weight = hidden[rows].to(dtype), targets[rows, None], weights[rows].float()
            logits = (x @ matrix.T).float()
            peak, place = logits.max(dim=1, keepdim=True)
            top[rows] = place.squeeze(1)
            logits -= peak
            aimed = logits.gather(1, target)
            mass = logits.exp_().sum(dim=1, keepdim=True)
            loss += ((mass.log() - aimed).squeeze(1) * weight).sum()
            if hidden_grad is None or head_grad is None:
                continue
            slope = logits.mul_(weight[:, None] / mass)  # d loss / d logits
            slope = slope.scatter_add_(1, target, -weight[:, None]).to(dtype)
            hidden_grad[rows] = slope @ matrix
            head_grad += slope.T @ x
        if learns:
            ctx.save_for_backward(hidden_grad, head_grad)
        ctx.mark_non_differentiable(top)
        return loss, top

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_grad, head_grad = ctx.saved_tensors
        scale = grads[0]
        return hidden_grad * scale.to(hidden_grad.dtype), head_grad * scale, None, None


def twice_inside(positions: Tensor, lengths: Sequence[int]) -> Tensor:
    """Which `positions` of the row have two tokens of their own document before them, as a bool mask."""
    ends = torch.tensor(lengths, device=positions.device).cumsum(0)
    starts = ends - torch.tensor(lengths, device=positions.device)
    document = torch.searchsorted(ends, positions, right=True)
    return positions - starts[document] >= 2


def router_loss(routing: Routing) -> Tensor:
    """Mean over layers of E * sum_e f_e * P_e: 1.0 when tokens spread evenly, E / k when k experts take all.

    f_e is the share of all picks that went to expert e (no gradient), P_e the mean router probability of e.
    Each layer is balanced by itself: layers summed first could hide a collapsed one.
    """
    losses = [probs.shape[1] * (_load(probs, chosen) * probs.mean(0)).sum() for probs, chosen in routing]
    return torch.stack(losses).mean()


def busiest_expert(routing: Routing) -> float:
    """The largest load of any expert in any layer, over the load of an even spread."""
    return max(probs.shape[1] * float(_load(probs, chosen).max()) for probs, chosen in routing)


def _load(probs: Tensor, chosen: Tensor) -> Tensor:
    """f [E]: the share of all picks that went to each expert."""
    return torch.bincount(chosen.flatten(), minlength=probs.shape[1]) / chosen.numel()
