"""The training loss: next-token and next-next-token cross-entropy plus the router's balance loss.

The trainer calls `total` once per micro-step. Invariant: the logits of a whole row [T, V] never exist at
once, and a token of weight 0 costs no logits at all.

Shapes: T tokens of the row, R rows that are learned from, H hidden, V vocabulary, E experts, k chosen ones.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from qnext.kernels.documents import documents
from qnext.kernels.select import backend
from qnext.model.layers import Routing
from qnext.model.packing import Packing
from qnext.model.qwen3_next import Qwen3Next

from .batch import Batch
from .lookahead import look_ahead

ROWS_PER_CHUNK = 512  # of logits at once on a CPU: they stay in its cache
LOGITS_PER_CHUNK = 2**26  # numbers, elsewhere: launches should be large


class _Seen:
    """Collects the routing of a forward. Not a list: of those FSDP would give each layer a copy."""

    def __init__(self) -> None:
        self.all: Routing = []

    def append(self, routed: tuple[Tensor, Tensor], /) -> None:
        self.all.append(routed)


@dataclass
class Tally:
    """Sums over the batches seen since the last report; `means` turns them into metrics.

    They stay tensors on the device until then: nothing waits for it in the middle of a step.
    """

    tokens: int = 0
    seconds: float = 0.0  # left to the trainer
    weight: float | Tensor = 0.0  # of next-token rows
    nll: float | Tensor = 0.0
    z: float | Tensor = 0.0  # the unweighted z-loss
    # By depth of the MTP head [D, 4]: weight of its rows, their nll, their number, and how often the drafted
    # top token is the model's own.
    heads: Tensor = field(default_factory=lambda: torch.zeros(()))
    batches: int = 0
    steps: int = 0  # left to the trainer
    router: float | Tensor = 0.0  # the unweighted balance loss
    busiest: float | Tensor = 0.0  # load of the busiest expert of any layer, over the fair load
    loads: Tensor = field(default_factory=lambda: torch.zeros(()))  # tokens of each expert [L, E]

    def add(self, other: "Tally") -> None:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    def shared(self, total: Callable[[Tensor], Tensor]) -> "Tally":
        """The tally of all processes, given what sums a tensor over them; steps and seconds are shared."""
        apart = ("steps", "seconds", "loads", "heads")
        names = [each.name for each in fields(self) if each.name not in apart]
        sums = total(torch.tensor([float(getattr(self, name)) for name in names], dtype=torch.float64))
        values = dict(zip(names, sums.tolist(), strict=True))
        return replace(self, **values, loads=total(self.loads.clone()), heads=total(self.heads.clone()))

    def means(self) -> dict[str, float]:
        """Metrics in nats per token; a part the model does not have is left out."""
        weight = max(float(self.weight), 1e-9)
        metrics = {"nll": float(self.nll) / weight}
        if z := float(self.z):
            metrics["z"] = z / weight
        for depth, (weight, nll, rows, accepted) in enumerate(
            self.heads.tolist() if self.heads.ndim else (), 1
        ):
            if rows:
                ending = f"_{depth}" if depth > 1 else ""
                metrics["mtp_nll" + ending] = nll / weight
                metrics["mtp_acceptance" + ending] = accepted / rows
        if router := float(self.router):
            metrics["router"] = router / max(self.steps, 1)
            metrics["busiest_expert"] = float(self.busiest) / self.batches
        for layer, evenness in enumerate(load_entropy(self.loads) if self.loads.ndim else ()):
            metrics[f"load_entropy_{layer}"] = evenness
        return metrics


@dataclass(frozen=True)
class Share:
    """What a micro-step must know of its whole step, so that the balance losses of all add up to that of one
    long row: how many tokens there are, and what turns a row's counts of choices by layer and expert [L, E]
    into the step's."""

    tokens: int
    counts: Callable[[Tensor], Tensor] = lambda counts: counts


def total(
    model: Qwen3Next,
    batch: Batch,
    *,
    denominator: float,
    mtp_weight: float,
    router_weight: float,
    z_weight: float = 0.0,
    mtp_depth: int = 1,
    share: Share | None = None,
) -> tuple[Tensor, Tally]:
    """The loss of one micro-step, ready for `backward`, and what it was made of.

    Cross-entropies are weighted sums over tokens, divided by `denominator`: the token weight of the whole
    step, so that accumulated micro-steps equal one long row. Weight 0 leaves a part out; `mtp_weight` is that
    of the mean over `mtp_depth` uses of the head.
    """
    # Positions of the tokens to predict, and of those to draft: found first, as their number is waited for.
    learned = batch.weights.nonzero().flatten()
    drafts = model.config.mtp_layers and mtp_weight
    places = documents(batch.lengths, batch.ids.device).places[learned] if drafts else learned
    drafted = [learned[places > depth] for depth in range(1, mtp_depth + 1)] if drafts else []

    packing = Packing.of(batch.lengths, device=batch.ids.device)
    seen = _Seen()
    hidden = model(batch.ids, packing, routing=seen)
    head = (model.lm_head or model.embed_tokens).weight
    weights = batch.weights[learned]
    nll, z, top = cross_entropy(
        hidden.index_select(0, learned - 1), head, batch.ids[learned], weights, z_weight
    )
    loss = (nll + z_weight * z) / denominator
    tally = Tally(len(batch.ids), weight=weights.double().sum(), nll=nll.detach().double(), batches=1)
    tally.z = z.detach().double()

    if drafted:
        own_top = torch.empty_like(batch.ids).index_put((learned,), top)
        looks = look_ahead(model, hidden, batch, packing, seen, mtp_depth)
        heads = []
        for ahead, tokens in zip(looks, drafted, strict=True):
            weights = batch.weights[tokens]
            nll, _, draft_top = cross_entropy(
                ahead.index_select(0, tokens - 2), head, batch.ids[tokens], weights
            )
            loss = loss + mtp_weight / mtp_depth * nll / denominator
            right = (own_top[tokens] == draft_top).sum()
            count = torch.full_like(right, len(tokens))
            heads.append(torch.stack([each.detach().double() for each in (weights.sum(), nll, count, right)]))
        tally.heads = torch.stack(heads)

    if (routing := seen.all) and router_weight:
        counts = choice_counts(routing)
        tally.loads = counts
        counts = share.counts(counts.clone()) if share else counts
        balance = router_loss(routing, counts, share.tokens if share else len(batch.ids))
        loss = loss + router_weight * balance
        tally.router, tally.busiest = balance.detach(), busiest_expert(counts)
    return loss, tally


def cross_entropy(
    hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, z_weight: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted sum of -log softmax(hidden @ head.T)[target] in fp32 (scalar), the z-loss, and the top token
    of each row.

    hidden [R, H], head [V, H], targets [R] int64, weights [R]. Gradients reach `hidden` and `head`. The
    z-loss is the weighted sum of squared log-sums of exp(logits): it keeps logits from drifting. It must be
    added with the weight that is given here, and is 0 without.
    """
    loss, z, top = _LinearCrossEntropy.apply(hidden, head, targets, weights, z_weight)  # type: ignore[no-untyped-call]
    return loss, z, top


def log_probs(model: Qwen3Next, ids: Tensor, lengths: Sequence[int]) -> Tensor:
    """What the model gives each token after those before it in its document, in nats [T]; 0 for first ones.

    ids [T]: documents of these `lengths` end to end. Gradients reach the model.
    """
    hidden = model(ids, Packing.of(lengths, device=ids.device))
    starts = torch.tensor(lengths, device=ids.device).cumsum(0)[:-1]
    follows = torch.ones_like(ids, dtype=torch.bool).index_fill(0, starts, False)
    follows[0] = False
    places = follows.nonzero().flatten()
    found = [
        model.logits(hidden[rows - 1]).float().log_softmax(-1).gather(1, ids[rows, None]).squeeze(1)
        for rows in places.split(ROWS_PER_CHUNK)
    ]
    none: Tensor = hidden.new_zeros(len(ids), dtype=torch.float32)
    return none.index_put((places,), torch.cat(found))


class _LinearCrossEntropy(torch.autograd.Function):
    """Computes its gradients in the forward, chunk by chunk: the logits are made once and never kept."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, z_weight: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        matrix, ops = head.to(dtype), backend(device)
        learns = any(ctx.needs_input_grad[:2])
        chunk = _chunk(head)
        loss, z = (hidden.new_zeros((), dtype=torch.float32) for _ in range(2))
        top = torch.empty_like(targets)
        hidden_grad = torch.empty_like(hidden) if learns else None
        head_grad = torch.zeros_like(head) if learns else None
        for start in range(0, len(targets), chunk):
            rows = slice(start, start + chunk)
            x, weight = hidden[rows].to(dtype), weights[rows].float()
            slope = x @ matrix.T
            losses, squares, top[rows] = ops.cross_entropy(slope, targets[rows], weight, z_weight)
            loss += (losses * weight).sum()
            if z_weight:
                z += (squares * weight).sum()
            if hidden_grad is None or head_grad is None:
                continue
            hidden_grad[rows] = slope @ matrix
            head_grad += slope.T @ x
        if learns:
            ctx.save_for_backward(hidden_grad, head_grad)
        ctx.mark_non_differentiable(z, top)  # the gradient of `loss` has z's in it
        return loss, z, top

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        hidden_grad, head_grad = ctx.saved_tensors
        scale = grads[0]
        return hidden_grad * scale.to(hidden_grad.dtype), head_grad * scale, None, None, None


def _chunk(head: Tensor) -> int:
    """Rows of logits to make at once."""
    if head.device.type == "cpu":
        return ROWS_PER_CHUNK
    return max(ROWS_PER_CHUNK, LOGITS_PER_CHUNK // len(head))


def router_loss(routing: Routing, counts: Tensor, tokens: int) -> Tensor:
    """Mean over layers of E * sum_e f_e * P_e: 1.0 when tokens spread evenly, E / k when k experts take all.

    f_e is the share of all picks of the step that went to expert e (`counts` [L, E], no gradient), P_e the
    sum of these rows' router probabilities of e over the step's `tokens`: the rows of a step add up to the
    loss of all of them. Each layer is balanced by itself: layers summed first could hide a collapsed one.
    """
    shares = counts / counts.sum(1, keepdim=True)
    losses = [
        probs.shape[1] * (share * (probs.sum(0) / tokens)).sum()
        for (probs, _), share in zip(routing, shares, strict=True)
    ]
    return torch.stack(losses).mean()


def choice_counts(routing: Routing) -> Tensor:
    """How many tokens chose each expert, by layer [L, E] fp32."""
    counts = []
    for probs, chosen in routing:  # not bincount: on CUDA it waits
        picks = chosen.flatten()
        ones = torch.ones_like(picks, dtype=torch.float32)
        counts.append(ones.new_zeros(probs.shape[1]).scatter_add_(0, picks, ones))
    return torch.stack(counts)


def busiest_expert(counts: Tensor) -> Tensor:
    """The largest load of any expert in any layer, over the load of an even spread."""
    return (counts.max(1).values / counts.mean(1)).max()


def load_entropy(counts: Tensor) -> list[float]:
    """Entropy of each layer's expert loads over that of an even spread: 1 is even, 0 is collapse."""
    shares = counts / counts.sum(1, keepdim=True)
    entropy = torch.special.entr(shares).sum(1) / math.log(counts.shape[1])
    found: list[float] = entropy.tolist()
    return found
