"""What waits for the MTP head: read late and in pieces, it leaves what reading all at once does."""

from __future__ import annotations

from array import array
from random import Random

import pytest
import torch

from qnext.engine import head as heads
from qnext.engine.head import Head, Span
from qnext.engine.plan import Piece
from qnext.engine.request import SamplingParams
from qnext.engine.runner import Runner, Step
from qnext.engine.sequence import Sequence
from qnext.model.packing import Packing

from ..kernels.twins import distance
from ..model.tiny import token_ids
from .harness import MODEL
from .rows import sequence

PAGE, LENGTH, COUNT = 4, 90, 3


def made(number: int) -> Sequence:
    found = sequence(tuple(token_ids(LENGTH + 1, seed=number).tolist()), SamplingParams(), limit=200)
    found.slot = number
    found.pages = array("q", range(number * 30, number * 30 + 24))
    return found


def cells(runner: Runner, one: Sequence) -> torch.Tensor:
    assert runner.state.mtp is not None
    return torch.stack([each[one.pages.tolist()].flatten(0, 1)[1 : LENGTH + 1] for each in runner.state.mtp])


def span(piece: Piece, start: int) -> Span:
    """Of a piece that has just been computed."""
    one = piece.sequence
    return one, one.unread, start, piece.length, one.computed


def advance(runner: Runner, head: Head, one: Sequence, length: int = 1, *, unasked: bool = False) -> Step:
    """Compute some tokens of a text, and have the head note it."""
    step = runner.run([Piece(one, length)])
    one.computed += length
    head.note(step, [span(Piece(one, length), 0)], unasked=unasked)
    return step


@torch.inference_mode()
def at_once(runner: Runner, one: Sequence) -> torch.Tensor:
    """The head's cells after it has read the whole text in one go."""
    ids = torch.tensor(one.tokens)
    packing = Packing.cached([LENGTH], [1], [one.pages], [0], PAGE, first=1)
    assert runner.state.mtp is not None
    runner.model.mtp_read(MODEL(ids[:-1]), ids[1:], packing, runner.state.mtp)
    return cells(runner, one)


@pytest.mark.parametrize("seed", range(6))
@torch.inference_mode()
def test_it_is_read_as_if_at_once(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(heads, "WAITING", 40)
    monkeypatch.setattr(heads, "SHORT", 8)
    rng, texts = Random(seed), [made(n) for n in range(COUNT)]
    runner = Runner(MODEL, 100, PAGE, COUNT, 2)
    head = Head(runner, [0] * 100)
    assert runner.state.mtp is not None
    for each in runner.state.mtp:
        each.fill_(float("nan"))
    while going := [each for each in texts if each.computed < LENGTH]:
        some = rng.sample(going, rng.randint(1, len(going)))
        pieces = [Piece(s, min(rng.choice((1, 1, 1, 2, 30)), LENGTH - s.computed)) for s in some]
        step = runner.run(pieces)
        for piece in pieces:
            piece.sequence.computed += piece.length
        head.note(step, [span(p, at) for p, at in zip(pieces, step.starts, strict=True)])
        for piece, start in zip(pieces, step.starts, strict=True):  # the newest row is always at hand
            head.remember(piece.sequence)
            assert runner.state.hidden is not None
            assert torch.equal(
                runner.state.hidden[piece.sequence.slot], step.hidden[start + piece.length - 1]
            )
        if rng.random() < 0.2:
            asked = rng.sample(texts, 2)
            guessing = [each for each in head.able(asked[:1]) if each.unread.count]
            answers = head.absorb(guessing, asked[1:])
            assert (answers is None) == (not guessing)
    head.absorb([], texts)
    assert not any(each.unread.count for each in texts)
    for one in texts:
        found = cells(runner, one)
        assert distance(found, at_once(runner, one)) < 1e-4


@torch.inference_mode()
def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "WAITING", 8)
    monkeypatch.setattr(heads, "RECENT", 3)
    runner, (still, busy) = Runner(MODEL, 100, PAGE, 2, 2), (made(0), made(1))
    head = Head(runner, [0] * 100)
    first = advance(runner, head, still)
    most = 0
    for _ in range(20):
        advance(runner, head, busy)
        most = max(most, busy.unread.count)
    assert 4 < most <= 8  # a forward each
    head.remember(still)
    assert runner.state.hidden is not None and torch.equal(runner.state.hidden[0], first.hidden[0])
    assert still.unread.count == 1 and not still.restored
    still.reset()
    assert still.unread.count == 0 and not still.unread.known


@torch.inference_mode()
def test_a_head_that_nobody_asks_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """And then as much as it has kept, from a page's first cell on."""
    monkeypatch.setattr(heads, "RECENT", 9)
    runner, one = Runner(MODEL, 100, PAGE, 1, 2), made(0)
    head, filled = Head(runner, found := [0] * 100), [0] * 100
    advance(runner, head, one, 30, unasked=True)
    for _ in range(40):
        advance(runner, head, one, unasked=True)
    advance(runner, head, one, 10, unasked=True)
    assert head.resting and found == filled and one.computed == 80
    assert head.able([one]) == [one] and not head.resting and one.blank == 64
    head.absorb([one], [])
    assert found[:16] == filled[:16] and found[17:20] == [4] * 3 and found[20] == 1
    assert distance(cells(runner, one)[:, 64:80], at_once(runner, one)[:, 64:80]) < 1e-4


def test_what_was_restored_does_not_change_with_its_slot() -> None:
    runner, one = Runner(MODEL, 100, PAGE, 2, 2), made(0)
    one.admit(1, [])
    assert one.restored and runner.state.hidden is not None
    runner.state.hidden[0] = 1.0
    Head(runner, [0] * 100).recall(one)
    runner.state.hidden[0] = 2.0
    assert not one.restored and one.unread.count == 1 and bool((one.unread.newest == 1).all())
