"""The actor: what the engine tells of its answers is what the trainer computes, so that nothing is learned
from the difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest
import torch

from qnext.actor import EngineActor
from qnext.model.layers import Routing
from qnext.model.packed_network import PackedQwen3Next
from qnext.model.qwen3_next import Qwen3Next
from qnext.train.objective import gspo
from qnext.train.policy import answer_log_probs
from qnext.train.rollout import UNKNOWN, Ask, Rollout, Row

from .model.packed_tiny import SHAPE
from .model.tiny import tiny_model, token_ids

EOS = (5,)


def asks(
    count: int = 12, temperature: float = 1.0, *, max_tokens: int = 24, routed: bool = True
) -> list[Ask]:
    return [
        Ask(tuple(token_ids(3 + 9 * (i % 3), seed=i % 3).tolist()), EOS, i, temperature, max_tokens, routed)
        for i in range(count)
    ]


def model(seed: int = 0, *, packs: bool = False) -> Qwen3Next:
    return tiny_model(seed, initializer_range=0.1, **(SHAPE if packs else {}))


@pytest.fixture
def actor() -> Iterator[EngineActor]:
    with closing(EngineActor(torch.float32, 200, at_once=5)) as made:  # fewer places than answers
        yield made


@pytest.mark.parametrize("packs", [False, True], ids=["reference", "packed"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@torch.no_grad()
def test_the_ratio_is_1_before_anything_is_learned(
    actor: EngineActor, packs: bool, temperature: float
) -> None:
    """Also with the weights of a refresh, and with the recorded experts."""
    for seed in (0, 1):
        learning = model(seed, packs=packs)
        actor.refresh(learning)
        assert actor._engine is not None
        assert isinstance(actor._engine._steps.runner.model, PackedQwen3Next) == packs
        drawn = actor.answer(asks(temperature=temperature))
        row, old = Row.of(drawn, "cpu"), torch.cat([each.log_probs for each in drawn])
        assert row.experts is not None and len(old) > 100
        new, _ = answer_log_probs(learning, row, temperature)
        assert (new - old).abs().max() <= 1e-4
        found = gspo(new, old, row.answers, torch.ones(len(drawn)), 0.1, 0.1)
        assert (found.ratio - 1).abs().max() <= 1e-4
        strange = answer_log_probs(model(2, packs=packs), row, temperature)[0]
        assert (strange - old).abs().max() > 0.1


def test_the_same_questions_get_the_same_answers_to_the_last_bit(actor: EngineActor) -> None:
    actor.refresh(model())
    first = actor.answer(asks())
    actor.refresh(model(1))
    assert [each.answer for each in actor.answer(asks())] != [each.answer for each in first]
    actor.refresh(model())
    with closing(EngineActor(torch.float32, 200, at_once=5)) as other:
        other.refresh(model())
        for found in (actor.answer(asks()), other.answer(asks())):
            for one, two in zip(found, first, strict=True):
                assert one.answer == two.answer and torch.equal(one.log_probs, two.log_probs)
    assert len({each.answer for each in first}) == len(first)


def test_answers_end_or_are_cut(actor: EngineActor) -> None:
    actor.refresh(model())
    drawn = actor.answer(asks(24, max_tokens=40))
    assert {each.ended for each in drawn} == {True, False}
    for each in drawn:
        assert len(each.log_probs) == len(each.answer) <= 40
        assert each.ended == (each.answer[-1] in EOS) and EOS[0] not in each.answer[:-1]
        assert each.ended or len(each.answer) == 40


def own(learning: Qwen3Next, rollout: Rollout) -> torch.Tensor:
    routing: Routing = []
    with torch.no_grad():
        learning(torch.tensor(rollout.prompt + rollout.answer), routing=routing)
    return torch.stack([chosen for _, chosen in routing], 1)


def test_experts_are_those_of_their_tokens(actor: EngineActor) -> None:
    """Each token's are recorded but the last one's, which nothing was computed for."""
    learning = model()
    actor.refresh(learning)
    for each in actor.answer(asks()):
        assert each.experts is not None and (each.experts[-1] == UNKNOWN).all()
        assert torch.equal(each.experts[:-1].sort(-1)[0], own(learning, each)[:-1].sort(-1)[0])
    assert all(each.experts is None for each in actor.answer(asks(routed=False)))


@torch.no_grad()
def test_in_bfloat16_replay_brings_both_together() -> None:
    """A rounded router sends tokens elsewhere; by the experts that were recorded, what remains is
    rounding."""
    learning = tiny_model(initializer_range=0.2, num_experts=16, num_experts_per_tok=2)
    with closing(EngineActor(torch.bfloat16, 200, at_once=16)) as actor:
        actor.refresh(learning)
        drawn = actor.answer(asks(16, max_tokens=60))
    row, old = Row.of(drawn, "cpu"), torch.cat([each.log_probs for each in drawn])
    assert row.experts is not None
    elsewhere = [
        (each.experts[:-1].sort(-1)[0] != own(learning, each)[:-1].sort(-1)[0]).any() for each in drawn
    ]  # type: ignore[index]
    assert sum(elsewhere) > 4
    replayed, _ = answer_log_probs(learning, row, 1.0)
    free, _ = answer_log_probs(learning, Row(row.ids, row.lengths, row.places, row.answers, None), 1.0)
    assert (replayed - old).square().mean() < 0.5 * (free - old).square().mean()
