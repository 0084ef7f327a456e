"""What guesses cost is learnt from rounds in which there were some."""

from __future__ import annotations

import pytest

from qnext.engine.head import Head
from qnext.engine.pace import Pace

from .harness import engine, request, tokens


@pytest.mark.parametrize("able", [True, False])
def test_a_round_in_which_nobody_could_be_guessed_for_is_not_measured(
    able: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = list[int]()
    monkeypatch.setattr(Pace, "took", lambda pace, answers, k, seconds: measured.append(k))
    monkeypatch.setattr(Pace, "choose", lambda pace, answers: 2)
    monkeypatch.setattr(Pace, "listens", True)
    if not able:
        monkeypatch.setattr(Head, "able", lambda head, sequences: [])
    with engine(draft_tokens=2) as made:
        tokens(made.submit(request(33, max_tokens=40)))
    assert set(measured) == ({2} if able else set())
