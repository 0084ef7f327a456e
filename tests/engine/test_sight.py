"""What counts as seen by the MTP head, beside a plain set of cells; and a head that rests now and then."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from qnext.engine import head as heads
from qnext.engine.head import Head
from qnext.engine.plan import Piece
from qnext.engine.rounds import Rounds
from qnext.engine.sequence import Sequence
from qnext.engine.sight import blank, fill
from qnext.model.packing import Packing

from ..kernels.twins import distance
from .harness import MODEL
from .programs import Program, run


@pytest.mark.parametrize("seed", range(20))
def test_a_page_is_seen_from_its_first_cell_on(seed: int) -> None:
    dice, size, count = Random(seed), 4, 6
    pages = dice.sample(range(10), count)
    filled, seen = [0] * 10, {0}
    for _ in range(12):
        begin = dice.randrange(1, size * count)
        end = min(begin + dice.randint(1, 9), size * count)
        fill(filled, pages, begin, end, size)
        for place in range(count):  # what is written behind a gap does not count
            for cell in range(max(begin, place * size), min(end, (place + 1) * size)):
                if cell % size == 0 or cell - 1 in seen:
                    seen.add(cell)
        for length in range(1, size * count + 1):
            wanted = next(
                x for x in range(0, length + size, size) if all(cell in seen for cell in range(x, length))
            )
            assert blank(filled, pages, length, size) == wanted


@torch.inference_mode()
def entries(head: Head, one: Sequence) -> tuple[torch.Tensor, torch.Tensor]:
    """What the head may look at of a text, and what it should be."""
    tokens, size = one.tokens[: one.computed + 1], head._size
    ids = torch.tensor(tokens)
    fresh = [torch.zeros(-(-len(tokens) // size), *side.shape[1:]) for side in head._entries]
    packing = Packing.cached([one.computed], [1], [range(len(fresh[0]))], [0], size, first=1)
    MODEL.mtp_read(MODEL(ids[:-1]), ids[1:], packing, (fresh[0], fresh[1]))
    pages = one.pages[: len(fresh[0])].tolist()
    begin = (one.blank or 0) + 1
    found, wanted = (
        torch.stack([side.flatten(0, 1)[begin : one.computed + 1] for side in sides])
        for sides in ([side[pages] for side in head._entries], fresh)
    )
    return found, wanted


@pytest.mark.parametrize("chunk", range(3))
def test_a_head_that_rests_looks_only_at_what_it_has_read(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through all that programs do to pages: what it may look at is what reading the text at once leaves."""
    dice, checked = Random(chunk), list[tuple[int, float]]()

    def choose(rounds: Rounds, pieces: list[Piece], guessing: list[Sequence]) -> int:
        return rounds.pace.most if guessing and dice.random() < 0.3 else 0

    def rest(rounds: Rounds, answers: int) -> bool:
        rested.append(dice.random() < 0.5)
        return rested[-1]

    rested, absorb = list[bool](), Head.absorb

    def checking(head: Head, guessing: list[Sequence], others: list[Sequence]) -> Any:
        answer = absorb(head, guessing, others)
        for one in guessing[:1]:
            found, wanted = entries(head, one)
            checked.append((one.blank or 0, distance(found, wanted)))
        return answer

    monkeypatch.setattr(heads, "RECENT", 2)
    monkeypatch.setattr(Rounds, "choose", choose)
    monkeypatch.setattr(Rounds, "rest", rest)
    monkeypatch.setattr(Head, "absorb", checking)
    for seed in range(chunk * 12, chunk * 12 + 12):
        assert run(Program.of(seed), tmp_path / str(seed)) is None
    assert max(off for _, off in checked) < 1e-4
    assert sum(rested) > 10
    assert len(checked) > 10 and sum(begin > 0 for begin, _ in checked) > 1  # it had rested
