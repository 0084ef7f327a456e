"""Documents in one row never touch: not through convolution, delta state, attention, experts or MTP."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qnext.model.qwen3_next import Qwen3Next
from qnext.train import loss
from qnext.train.batch import Batch

from .toy import toy_model

LENGTHS = (9, 1, 70, 2, 33)
ROOM = 100  # tokens of the observed document are below, those of its neighbours at or above


def document(length: int, seed: int, first: int = 0) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(first, first + ROOM, (length,), generator=rng)


def row(observed: int, seed: int) -> Batch:
    """A row of which one document is learned from; its neighbours' tokens depend on the seed."""
    texts = [document(n, 0) if i == observed else document(n, seed + i, ROOM) for i, n in enumerate(LENGTHS)]
    weights = [(torch.arange(n) > 0).float() * (i == observed) for i, n in enumerate(LENGTHS)]
    return Batch(torch.cat(texts), torch.cat(weights), LENGTHS)


def learn(model: Qwen3Next, batch: Batch) -> tuple[loss.Tally, dict[str, Tensor]]:
    model.zero_grad()
    found, tally = loss.total(model, batch, denominator=1.0, mtp_weight=0.5, router_weight=0.0, mtp_depth=3)
    found.backward()
    return tally, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("observed", [0, 2, 4])
def test_nothing_flows_from_or_to_a_neighbour(observed: int) -> None:
    """The embeddings of the neighbours' tokens get no gradient at all, not even a tiny one."""
    model = toy_model(tie_word_embeddings=False)
    _, gradients = learn(model, row(observed, seed=1))
    rows = gradients["embed_tokens.weight"].abs().sum(1)
    assert rows[:ROOM].count_nonzero() > LENGTHS[observed] / 2
    assert rows[ROOM:].count_nonzero() == 0


@pytest.mark.parametrize("observed", [0, 2, 4])
def test_a_changed_neighbour_moves_neither_loss_nor_gradient(observed: int) -> None:
    model = toy_model()
    tally, gradients = learn(model, row(observed, seed=1))
    other_tally, other = learn(model, row(observed, seed=77))
    assert tally.nll > 0 and (tally.heads[:, 1] > 0).all()
    # experts multiply other blocks of rows: sums may be rounded differently, and no more than that
    assert float(other_tally.nll) == pytest.approx(float(tally.nll), rel=1e-5)
    torch.testing.assert_close(other_tally.heads[:, 1], tally.heads[:, 1], rtol=1e-5, atol=0)
    for name, gradient in gradients.items():
        assert (other[name] - gradient).abs().max() <= 1e-4 * gradient.abs().max(), name
