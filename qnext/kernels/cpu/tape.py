"""Tapes: what a pass through a network called, so that the next one like it need not be thought of again.

A step of one token is some fifty calls, and Python takes longer to prepare one than a small network to carry
it out. Where all that they are told lies where it lay before, they can be made again as they were. Twin: the
pass itself. Invariant: what is played is what the pass would have called.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Hashable
from typing import Any, Generic, NamedTuple, TypeVar
from weakref import ref

import numba

from .workspace import Workspace

T = TypeVar("T")


class Tape(NamedTuple, Generic[T]):
    """Calls with the jobs they point to, and what the pass returned; `threads` as numba had them, `moves` of
    the workspace by then."""

    calls: array[int]
    threads: int
    jobs: list[array[int]]
    result: T
    moves: int
    owner: ref[Any]


class Tapes:
    """The tapes of a workspace, those that were played longest ago first."""

    MOST = 2048  # of about 20 KB each in a small network

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._tapes: dict[tuple[int, Hashable], Tape[Any]] = {}

    def run(self, key: Hashable, owner: object, make_pass: Callable[[], T]) -> T:
        """`make_pass()`, or its calls once more if it was made with this key before.

        All that it passes to kernels besides the workspace's memory and the weights must be `owner`'s, or in
        the key; and it must do nothing else. Its result is to lie in the workspace.
        """
        workspace, place = self._workspace, (id(owner), key)
        tape = self._tapes.pop(place, None)
        if tape is not None and tape.moves == workspace.moves and tape.owner() is owner:
            self._tapes[place] = tape  # the newest
            workspace.team.run(tape.calls, tape.threads)
            return tape.result  # type: ignore[no-any-return]
        moves, workspace.calls = workspace.moves, []
        try:
            result, made = make_pass(), workspace.calls
        finally:
            workspace.calls = None
        if workspace.moves == moves:  # else the first calls may be about memory that is there no more
            if len(self._tapes) == self.MOST:
                del self._tapes[next(iter(self._tapes))]
            calls = array("q", [number for some, _ in made for number in some])
            jobs = [job for _, job in made]
            self._tapes[place] = Tape(calls, numba.get_num_threads(), jobs, result, moves, ref(owner))
        return result
