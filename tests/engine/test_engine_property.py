"""Requests that come and go at any step, in any room: what is told is the plain greedy answer, to the end or
up to the abort, and nothing is ever lost.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnext.engine.engine import Engine
from qnext.engine.plan import Piece
from qnext.engine.stream import Stream

from .harness import Watch, all_is_free, at_once, end, engine, greedy, request

pytestmark = pytest.mark.usefixtures("poisoned_memory")

LENGTHS = (1, 2, 5, 17, 33, 63, 64, 65)


@dataclass(frozen=True)
class Guest:
    """A request that comes at a step, and perhaps leaves some steps later."""

    length: int
    comes: int
    leaves: int | None


class Party:
    """Lets guests in and out from within the engine's thread, so that a scenario is the same each time."""

    def __init__(self, made: Engine, guests: list[Guest]) -> None:
        self.engine = made
        self.expected = deque(sorted(guests, key=lambda guest: guest.comes))
        self.present: list[tuple[Guest, Stream, int]] = []

    def admit(self, step: int) -> None:
        with at_once(self.engine):
            guest = self.expected.popleft()
            self.present.append((guest, self.engine.submit(request(guest.length)), step))

    def act(self, step: int, pieces: list[Piece]) -> None:
        while self.expected and self.expected[0].comes <= step:
            self.admit(step)
        for guest, stream, came in self.present:
            if guest.leaves is not None and step == came + guest.leaves:
                stream.abort()


guests = st.builds(
    Guest,
    length=st.sampled_from(LENGTHS),
    comes=st.integers(0, 25),
    leaves=st.none() | st.none() | st.integers(0, 20),
)
rooms = st.fixed_dictionaries(
    {
        "page_size": st.sampled_from([1, 4, 16]),
        "max_sequences": st.sampled_from([1, 2, 3, 6]),
        "step_tokens": st.sampled_from([1, 3, 16, 64, 1000]),
        "draft_tokens": st.sampled_from([0, 1, 3]),
        "fixed_drafts": st.booleans(),
        "prefix_cache": st.booleans(),
        "batch_invariant": st.sampled_from([False, False, True]),
    }
)


@settings(deadline=None, max_examples=15)
@given(st.lists(guests, min_size=1, max_size=8), rooms, st.sampled_from([96, 112, 160, 320]))
def test_whoever_comes_and_goes(party: list[Guest], room: dict[str, int], space: int) -> None:
    with engine(pages=space // room["page_size"], **room) as made:
        watch = Watch(made)
        watch.before = (scene := Party(made, party)).act
        read = 0
        while scene.expected or read < len(scene.present):
            if read == len(scene.present):
                scene.admit(watch.steps)  # the engine is idle: the next one comes at once
            guest, stream, _ = scene.present[read]
            found, reason = end(stream)
            answer = list(greedy(guest.length)[1])
            if reason == "abort":
                assert guest.leaves is not None and found == answer[: len(found)]
            else:
                assert (found, reason) == (answer, "length")
            read += 1
        assert all_is_free(made)
        assert not watch.faults, watch.faults
