"""Random programs of requests: whatever the engine keeps, shares, guesses, evicts or fetches, greedy
answers are those of a plain loop without any cache. And faults that are planted are found.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qnext.engine.cache import PrefixCache
from qnext.engine.plan import Move, Restore
from qnext.engine.runner import Runner
from qnext.model.packing import Packing

from ..model.packed_tiny import packed_tiny
from . import programs
from .programs import Program, run

CHUNK = 30


@pytest.fixture
def packed_model(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The programs are run by, and their answers come from, a network on packed weights."""
    monkeypatch.setattr(programs, "MODEL", packed_tiny("float32", "exact", initializer_range=0.1))
    programs.forest.cache_clear()
    yield
    programs.forest.cache_clear()


@pytest.mark.parametrize("chunk", range(3))
def test_answers_are_those_of_the_plain_loop(chunk: int, tmp_path: Path) -> None:
    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        assert run(Program.of(seed), tmp_path / str(seed)) is None


@pytest.mark.usefixtures("packed_model")
@pytest.mark.parametrize("chunk", range(10))
def test_packed_answers_are_those_of_the_plain_loop(chunk: int, tmp_path: Path) -> None:
    for seed in range(chunk * CHUNK, (chunk + 1) * CHUNK):
        assert run(Program.of(seed), tmp_path / str(seed)) is None


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_thousands_more(tmp_path: Path) -> None:
    for seed in range(3 * CHUNK, 5000):
        assert run(Program.of(seed), tmp_path / str(seed)) is None


def changed_packing(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    plain = Runner.packing

    def packing(self: Runner, *given: Any, **more: Any) -> Packing:
        return plain(self, *given, **{name: changes.get(name, lambda v: v)(v) for name, v in more.items()})

    monkeypatch.setattr(Runner, "packing", packing)


def zeros(counts: list[int]) -> list[int]:
    return [0] * len(counts)


def commit_rejected_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    changed_packing(monkeypatch, drafts=zeros, replays=zeros)


def forget_accepted_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    changed_packing(monkeypatch, replays=zeros)


def save_a_token_early(monkeypatch: pytest.MonkeyPatch) -> None:
    def early(saves: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
        return [(n, max(1, count - 1), slot) for n, count, slot in saves]

    changed_packing(monkeypatch, saves=early)


def share_the_last_page(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Runner.move

    def move(self: Runner, move: Move) -> None:
        plain(self, Restore(move.slot, move.state, None, move.replays) if isinstance(move, Restore) else move)

    monkeypatch.setattr(Runner, "move", move)


def keep_without_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = PrefixCache.insert

    def insert(self: PrefixCache, *given: Any) -> Any:
        return plain(self, *given[:5], 0)

    monkeypatch.setattr(PrefixCache, "insert", insert)


FAULTS = [
    commit_rejected_drafts,
    forget_accepted_drafts,
    save_a_token_early,
    share_the_last_page,
    keep_without_replays,
]


LIKELY = (5, 6, 15, 23)  # programs in which each of these was found before


@pytest.mark.parametrize("plant", FAULTS)
def test_a_planted_fault_is_found(plant: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    assert any(run(Program.of(seed), tmp_path / str(seed)) for seed in (*LIKELY, *range(60)))
