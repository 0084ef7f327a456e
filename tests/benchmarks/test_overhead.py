"""The engine's own cost can be measured: its model of no work is one that the engine takes."""

from __future__ import annotations

import pytest

from benchmarks.overhead import KINDS, step_microseconds


@pytest.mark.parametrize("kind", KINDS)
def test_every_answer_writes_in_every_step(kind: str) -> None:
    assert 0 < step_microseconds(KINDS[kind], batch=3, steps=5) < 1e6
