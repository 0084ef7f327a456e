"""What the learning model says of an answer: the loss's own log-probabilities, by the experts that drew
it."""

from __future__ import annotations

import pytest
import torch

from qnext.model.layers import Routing
from qnext.model.qwen3_next import Qwen3Next
from qnext.train.loss import log_probs
from qnext.train.network import recompute_layers
from qnext.train.policy import answer_log_probs
from qnext.train.rollout import UNKNOWN, Rollout, Row

from ..model.tiny import tiny_model, token_ids

SIZES = ((3, 5), (1, 40), (20, 7))  # tokens of prompts and answers


def rollouts(experts: list[torch.Tensor | None] | None = None) -> list[Rollout]:
    found = []
    for index, (prompt, answer) in enumerate(SIZES):
        ids = token_ids(prompt + answer, seed=index).tolist()
        recorded = experts[index] if experts else None
        found.append(Rollout(tuple(ids[:prompt]), tuple(ids[prompt:]), torch.zeros(answer), True, recorded))
    return found


def routes(model: Qwen3Next) -> list[torch.Tensor | None]:
    """The experts of each text's tokens [T, L, k], as a model chooses them."""
    found: list[torch.Tensor | None] = []
    for each in rollouts():
        routing: Routing = []
        with torch.no_grad():
            model(torch.tensor(each.prompt + each.answer), routing=routing)
        found.append(torch.stack([chosen for _, chosen in routing], 1))
    return found


@torch.no_grad()
def test_they_are_the_losss_own() -> None:
    model, row = tiny_model(initializer_range=0.1), Row.of(rollouts(), "cpu")
    found, _ = answer_log_probs(model, row, 1.0)
    wanted = log_probs(model, row.ids, row.lengths)[row.places]
    assert len(found) == 52
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_and_entropy_are_of_what_is_drawn_from(temperature: float) -> None:
    model, row = tiny_model(initializer_range=0.1), Row.of(rollouts(), "cpu")
    found, entropy = answer_log_probs(model, row, temperature)
    start = 0
    for each in rollouts():
        scores = model.logits(model(torch.tensor(each.prompt + each.answer))) / temperature
        for place, token in enumerate(each.answer):
            chances = scores[len(each.prompt) + place - 1].softmax(-1)
            assert float(found[start + place]) == pytest.approx(float(chances[token].log()), abs=1e-5)
            wanted = float(torch.special.entr(chances).sum())
            assert float(entropy[start + place]) == pytest.approx(wanted, abs=1e-4)
        start += len(each.answer)


def gradients(model: Qwen3Next, row: Row) -> dict[str, torch.Tensor]:
    model.requires_grad_(True)
    answer_log_probs(model, row, 1.0)[0].sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_replaying_ones_own_experts_changes_nothing() -> None:
    plain = gradients(tiny_model(initializer_range=0.1), Row.of(rollouts(), "cpu"))
    for part in (slice(0, 0), slice(2, 9), slice(None)):  # where nobody saw the experts, the model chooses
        model = tiny_model(initializer_range=0.1)
        experts = routes(model)
        for each in experts:
            assert each is not None
            each[part] = UNKNOWN
        found = gradients(model, Row.of(rollouts(experts), "cpu"))
        assert found.keys() == plain.keys() and "layers.0.mlp.gate.weight" in found
        for name, gradient in plain.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_other_experts_are_used_where_they_were_recorded() -> None:
    """A model whose routers are changed says, by the recorded experts, what it says when its routers are told
    so."""
    model = tiny_model(initializer_range=0.1)
    experts = routes(model)
    other = tiny_model(initializer_range=0.1)
    with torch.no_grad():
        for layer in other.layers:
            layer.mlp.gate.weight.mul_(-1)  # type: ignore[union-attr, operator]
    with torch.no_grad():
        row, free = Row.of(rollouts(experts), "cpu"), Row.of(rollouts(), "cpu")
        replayed, own = answer_log_probs(other, row, 1.0)[0], answer_log_probs(other, free, 1.0)[0]
    assert (replayed - own).abs().max() > 1e-3
    seen: Routing = []
    with torch.no_grad():
        other(row.ids[: row.lengths[0]], routing=seen)
    assert experts[0] is not None and not torch.equal(seen[0][1].sort(-1)[0], experts[0][:, 0].sort(-1)[0])


def test_replay_goes_with_recomputed_layers() -> None:
    """Layers that are computed again in the backward are computed with the same experts."""
    model = tiny_model(initializer_range=0.1)
    experts = [each.flip(0) for each in routes(model) if each is not None]  # surely not their own
    row = Row.of(rollouts(list(experts)), "cpu")
    plain = gradients(tiny_model(initializer_range=0.1), row)
    recompute_layers(model)
    found = gradients(model, row)
    for name, gradient in plain.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
