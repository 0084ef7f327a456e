"""The MTP head used on itself in training, against drafting itself: one draft after another, with a cache."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qnext.model.layers import Routing
from qnext.model.packing import Packing
from qnext.model.qwen3_next import Qwen3Next
from qnext.model.state import State
from qnext.train import loss
from qnext.train.batch import Batch
from qnext.train.lookahead import look_ahead, visible
from qnext.train.network import recompute_layers

from .toy import toy_batch, toy_model

DEPTH, PAGE = 4, 4


def drafts(model: Qwen3Next, ids: Tensor, seen: int) -> list[Tensor]:
    """The head's states when it drafts after the first `seen` tokens and the next one, always guessing right:
    the trunk's states go into the cache, then its own, each in the cell after the last."""
    state = State.allocate(model.config, pages=10, page_size=PAGE, slots=1, dtype=torch.float32, mtp=True)
    pages = [[*range(9, -1, -1)]]
    hidden = model(ids[:seen])
    packing = Packing.cached([seen], [1], pages, [0], PAGE, first=1)
    found = [model.mtp_hidden(hidden, ids[1 : seen + 1], packing, state.mtp)[-1]]
    for j in range(1, min(DEPTH, len(ids) - seen)):
        packing = Packing.cached([1], [seen + j], pages, [0], PAGE, first=1)
        token = ids[seen + j : seen + j + 1]
        found.append(model.mtp_hidden(found[-1][None], token, packing, state.mtp, own=True)[0])
    return found


@torch.no_grad()
@pytest.mark.parametrize("normed", [True, False])
def test_every_depth_is_what_drafting_computes(normed: bool) -> None:
    model = toy_model(mtp_normed_input=normed)
    batch = toy_batch((9, 1, 2, 14, 3))
    packing, routing = Packing.of(batch.lengths), Routing()
    hidden = model(batch.ids, packing)
    looks = torch.stack(list(look_ahead(model, hidden, batch, packing, routing, DEPTH)))
    assert len(routing) == DEPTH
    compared, start = 0, 0
    for ids in batch.ids.split(batch.lengths):
        for seen in range(1, len(ids)):
            for d, wanted in enumerate(drafts(model, ids, seen)):
                found = looks[d, start + seen - 1 + d]
                assert (found - wanted).abs().max() < 1e-4, (start, seen, d)
                compared += 1
        start += len(ids)
    assert compared == 76


def test_the_loss_is_that_of_right_drafts_of_every_document() -> None:
    model, batch = toy_model(), toy_batch((9, 1, 2, 14, 3))
    settings = {"denominator": 1.0, "router_weight": 0.0}
    found, tally = loss.total(model, batch, mtp_weight=0.8, mtp_depth=DEPTH, **settings)
    plain, _ = loss.total(model, batch, mtp_weight=0.0, **settings)
    expected = torch.zeros(DEPTH)
    documents = zip(batch.ids.split(batch.lengths), batch.weights.split(batch.lengths), strict=True)
    with torch.no_grad():
        for ids, weights in documents:
            for seen in range(1, len(ids)):
                for d, state in enumerate(drafts(model, ids, seen)):
                    if seen + 1 + d < len(ids):
                        scores = model.logits(state).log_softmax(-1)
                        expected[d] -= weights[seen + 1 + d] * scores[ids[seen + 1 + d]]
    torch.testing.assert_close(tally.heads[:, 1].float(), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found, plain + 0.8 * expected.mean(), rtol=1e-4, atol=1e-4)
    assert {"mtp_nll", "mtp_nll_2", "mtp_acceptance_4"} <= tally.means().keys()


def test_gradients_reach_the_trunk_through_every_depth() -> None:
    model, batch = toy_model(), toy_batch((30,))
    hidden = model(batch.ids)
    looks = list(look_ahead(model, hidden, batch, Packing.of((30,)), Routing(), DEPTH))
    for d, ahead in enumerate(looks):
        (gradient,) = torch.autograd.grad(ahead[20].sum(), hidden, retain_graph=True)
        rows = gradient.abs().sum(1).nonzero().flatten().tolist()
        assert rows == list(range(21 - d)), d  # the trunk's states up to the first draft, and none after


def test_visible_by_its_definition() -> None:
    for depth in (2, 3):
        mask = visible(5, depth, torch.device("cpu")).view(5, depth, 5)
        for j in range(5):
            i = j - depth + 1
            for d in range(1, depth + 1):
                rows = set(range(i + 1)) if d == 1 else {i + d - 1} & set(range(5))
                assert set(mask[j, d - 1].nonzero().flatten().tolist()) == rows


def test_recomputed_layers_give_the_same_gradients() -> None:
    batch = toy_batch((40, 3))
    settings = {"denominator": 9.0, "mtp_weight": 0.3, "router_weight": 0.1, "mtp_depth": 2}
    gradients, forwards = [], []
    for again in (False, True):
        model = toy_model()
        if again:
            recompute_layers(model)
        calls: list[int] = []
        model.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        loss.total(model, batch, **settings)[0].backward()
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
        forwards.append(len(calls))
    assert forwards == [1, 2]
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


def test_a_batch_of_short_documents_has_no_deep_rows() -> None:
    model = toy_model()
    batch = Batch(torch.arange(4), torch.tensor([0.0, 1.0, 0.0, 1.0]), (2, 2))
    found, tally = loss.total(
        model, batch, denominator=1.0, mtp_weight=1.0, router_weight=0.1, mtp_depth=DEPTH
    )
    found.backward()
    assert tally.heads.sum() == 0 and found.isfinite()
