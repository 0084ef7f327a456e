"""The loss against slow, obvious twins: whole logits, one document at a time, loops over experts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from qnext.model.layers import Routing
from qnext.model.qwen3_next import Qwen3Next
from qnext.train import loss
from qnext.train.batch import Batch

from .toy import toy_batch, toy_model


@pytest.mark.parametrize("rows", [0, 1, 7, 12])
def test_cross_entropy_is_that_of_the_whole_logits(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(loss, "ROWS_PER_CHUNK", 5)
    torch.manual_seed(0)
    hidden, head = torch.randn(rows, 6, requires_grad=True), torch.randn(11, 6, requires_grad=True)
    targets, weights = torch.randint(0, 11, (rows,)), torch.rand(rows)
    found, z, top = loss.cross_entropy(hidden, head, targets, weights)
    (found * 3).backward()
    hidden_grad, head_grad = hidden.grad, head.grad
    hidden.grad = head.grad = None
    logits = hidden @ head.T
    expected = (F.cross_entropy(logits, targets, reduction="none") * weights).sum()
    (expected * 3).backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(hidden_grad, hidden.grad)
    torch.testing.assert_close(head_grad, head.grad)
    assert torch.equal(top, logits.argmax(1)) and z == 0


def test_z_loss_is_that_of_the_whole_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "ROWS_PER_CHUNK", 5)
    torch.manual_seed(0)
    hidden, head = torch.randn(12, 6, requires_grad=True), torch.randn(11, 6, requires_grad=True)
    targets, weights = torch.randint(0, 11, (12,)), torch.rand(12)
    nll, z, _ = loss.cross_entropy(hidden, head, targets, weights, 0.03)
    ((nll + 0.03 * z) * 3).backward()
    found = hidden.grad, head.grad
    hidden.grad = head.grad = None
    logits = hidden @ head.T
    expected_z = (logits.logsumexp(1).square() * weights).sum()
    expected = (F.cross_entropy(logits, targets, reduction="none") * weights).sum() + 0.03 * expected_z
    (expected * 3).backward()
    torch.testing.assert_close(z, expected_z)
    torch.testing.assert_close(found[0], hidden.grad)
    torch.testing.assert_close(found[1], head.grad)


def test_cross_entropy_of_huge_logits_is_finite() -> None:
    hidden, head = torch.full((2, 4), 1e4), torch.stack([torch.full((4,), 1e4), torch.full((4,), -1e4)])
    found, _, _ = loss.cross_entropy(hidden, head, torch.tensor([0, 0]), torch.ones(2))
    assert found == 0


def test_cross_entropy_under_autocast_stays_close() -> None:
    torch.manual_seed(0)
    hidden, head = torch.randn(40, 32), torch.randn(50, 32)
    targets, weights = torch.randint(0, 50, (40,)), torch.ones(40)
    exact, _, _ = loss.cross_entropy(hidden, head, targets, weights)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _, _ = loss.cross_entropy(hidden, head, targets, weights)
    assert rounded.dtype == torch.float32
    assert 0 < abs(rounded - exact) / exact < 0.01


def slow_total(model: Qwen3Next, batch: Batch, mtp_weight: float) -> tuple[Tensor, Tensor]:
    """Sums of both cross-entropies, one document and one token at a time."""
    nll = mtp_nll = torch.zeros(())
    documents = zip(batch.ids.split(batch.lengths), batch.weights.split(batch.lengths), strict=True)
    for ids, weights in documents:
        hidden = model(ids)
        log_probs = model.logits(hidden).log_softmax(-1)
        ahead = model.mtp_hidden(hidden[:-1], ids[1:]) if len(ids) > 1 else None
        for t in range(1, len(ids)):
            nll = nll - weights[t] * log_probs[t - 1, ids[t]]
            if t >= 2 and ahead is not None:
                mtp_nll = mtp_nll - weights[t] * model.logits(ahead).log_softmax(-1)[t - 2, ids[t]]
    return nll, mtp_nll


def test_total_is_that_of_each_document_alone() -> None:
    model = toy_model()
    batch = toy_batch((9, 1, 2, 14, 3))
    found, tally = loss.total(model, batch, denominator=2.0, mtp_weight=0.3, router_weight=0.0)
    found.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    nll, mtp_nll = slow_total(model, batch, 0.3)
    (nll / 2 + 0.3 * mtp_nll / 2).backward()
    assert tally.nll == pytest.approx(float(nll.detach()), rel=1e-5)
    assert tally.heads[0, 1] == pytest.approx(float(mtp_nll.detach()), rel=1e-5)
    assert tally.weight == pytest.approx(float(batch.weights.sum()))
    assert float(found.detach()) == pytest.approx(float((nll / 2 + 0.3 * mtp_nll / 2).detach()), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=1e-5, msg=name)


def test_acceptance_counts_equal_tops() -> None:
    model, batch = toy_model(vocab_size=5), toy_batch((12, 9, 30))
    batch = Batch(batch.ids % 5, batch.weights, batch.lengths)  # few tokens, so that some tops are equal
    _, tally = loss.total(model, batch, denominator=1.0, mtp_weight=0.3, router_weight=0.0)
    rows = accepted = 0
    for ids, weights in zip(batch.ids.split(batch.lengths), batch.weights.split(batch.lengths), strict=True):
        hidden = model(ids)
        own = model.logits(hidden).argmax(-1)
        draft = model.logits(model.mtp_hidden(hidden[:-1], ids[1:])).argmax(-1)
        for t in range(2, len(ids)):
            if weights[t]:
                rows += 1
                accepted += int(own[t - 1] == draft[t - 2])
    assert tally.heads[0, 2:].tolist() == [rows, accepted]
    assert 0 < accepted < rows


def test_micro_steps_add_up_to_one_row() -> None:
    model = toy_model()
    first, second = toy_batch((9, 4), 1), toy_batch((5, 8), 2)
    both = Batch(
        torch.cat([first.ids, second.ids]),
        torch.cat([first.weights, second.weights]),
        first.lengths + second.lengths,
    )
    settings = {"denominator": float(both.weights.sum()), "mtp_weight": 0.2, "router_weight": 0.0}
    whole, tally = loss.total(model, both, **settings)
    parts = [loss.total(model, batch, **settings) for batch in (first, second)]
    torch.testing.assert_close(parts[0][0] + parts[1][0], whole)
    sums = parts[0][1]
    sums.add(parts[1][1])
    assert sums.means()["nll"] == pytest.approx(tally.means()["nll"], rel=1e-5)
    assert sums.means()["mtp_acceptance"] == tally.means()["mtp_acceptance"]


def test_parts_of_weight_zero_are_left_out() -> None:
    model, batch = toy_model(), toy_batch((9,))
    _, tally = loss.total(model, batch, denominator=1.0, mtp_weight=0.0, router_weight=0.0)
    assert set(tally.means()) == {"nll"}
    bare = toy_model(mtp_layers=0)
    _, tally = loss.total(bare, batch, denominator=1.0, mtp_weight=0.3, router_weight=0.1)
    assert set(tally.means()) == {"nll", "router", "busiest_expert", "load_entropy_0", "load_entropy_1"}


def test_a_row_without_learned_tokens_has_no_loss() -> None:
    batch = toy_batch((4, 3))
    batch = Batch(batch.ids, torch.zeros(7), batch.lengths)
    found, tally = loss.total(toy_model(), batch, denominator=1.0, mtp_weight=0.3, router_weight=0.0)
    found.backward()
    assert found == 0 and tally.means() == {"nll": 0.0}


def balance(routing: Routing) -> Tensor:
    return loss.router_loss(routing, loss.choice_counts(routing), len(routing[0][0]))


def test_router_loss_at_balance_and_at_collapse() -> None:
    even = torch.full((8, 4), 0.25), torch.arange(16).view(8, 2) % 4
    assert float(balance([even])) == pytest.approx(1.0)
    collapsed = torch.tensor([[0.5, 0.5, 0, 0]]).expand(8, 4), torch.tensor([[0, 1]]).expand(8, 2)
    assert float(balance([collapsed])) == pytest.approx(2.0)  # E / k
    counts = loss.choice_counts([even, collapsed])
    assert float(loss.busiest_expert(counts)) == pytest.approx(2.0)
    assert loss.load_entropy(counts) == pytest.approx([1.0, 0.5])


def test_router_loss_is_per_layer() -> None:
    """Two layers that collapse on different experts look even when their tokens are thrown together."""
    layers = []
    for expert in (0, 1):
        probs = F.one_hot(torch.full((6,), expert), 2).float()
        layers.append((probs, torch.full((6, 1), expert)))
    assert float(balance(layers)) == pytest.approx(2.0)
    assert loss.load_entropy(loss.choice_counts(layers)) == [0.0, 0.0]


def test_router_loss_against_a_loop() -> None:
    torch.manual_seed(0)
    probs = torch.randn(2, 20, 5).softmax(-1).requires_grad_()
    routing = [(layer, layer.topk(2, -1).indices) for layer in probs]
    expected = torch.zeros(())
    for layer, chosen in routing:
        for expert in range(5):
            picks = sum(int(pick == expert) for pick in chosen.flatten()) / chosen.numel()
            expected = expected + 5 * picks * layer[:, expert].mean() / 2
    found = balance(routing)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found, probs)[0], torch.autograd.grad(expected, probs)[0])


def test_balance_of_micro_steps_is_that_of_one_row() -> None:
    """With the loads of the whole step: those of each row alone would ask every row to be even."""
    model = toy_model()
    first, second = toy_batch((9, 4), 1), toy_batch((5, 20), 2)
    both = Batch(
        torch.cat([first.ids, second.ids]),
        torch.cat([first.weights, second.weights]),
        first.lengths + second.lengths,
    )
    settings = {"denominator": 7.0, "mtp_weight": 0.2, "router_weight": 0.5}
    whole, tally = loss.total(model, both, **settings)
    whole.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    share = loss.Share(len(both.ids), lambda counts: tally.loads)
    parts = loss.Tally(steps=1)
    for batch in (first, second):
        part, seen = loss.total(model, batch, **settings, share=share)
        part.backward()
        parts.add(seen)
    assert torch.equal(parts.loads, tally.loads)
    assert parts.means()["router"] == pytest.approx(tally.means()["router"], rel=1e-5)
    assert parts.means()["busiest_expert"] == pytest.approx(tally.means()["busiest_expert"])
    for name, gradient in gradients.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-3, atol=1e-5, msg=name)
