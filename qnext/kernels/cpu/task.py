"""Tasks: kernels in phases, each cut into shares that threads run at once.

Run through `Workspace.run` by a `Team`. Invariant: a phase is compiled once, by itself.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from functools import cached_property

import numba
from numba.core import types

from .jit import compile_code


class Code:
    """A function of so many int64 numbers that returns nothing, compiled when first asked for and by itself:
    what calls it by its address is not compiled anew with it."""

    def __init__(self, function: Callable[..., None], numbers: int) -> None:
        self._function, self._kind = function, types.void(*[types.int64] * numbers)

    @cached_property
    def address(self) -> int:
        self._compiled = compile_code(self._function, self._kind)  # it owns the code
        return int(self._compiled.address or 0)


class Task:
    """Functions (job, share, shares) -> None: phases of some work that is cut into shares, `job` being the
    address of some int64 numbers (see `reader`)."""

    def __init__(self, *phases: Callable[[int, int, int], None]) -> None:
        self._phases = [Code(phase, 3) for phase in phases]  # a parallel loop would compile them five times

    def calls(self, job: array[int], most: int, first: int = 0) -> array[int]:
        """What a team runs, while the job is there: from phase `first` on, three numbers for each. As many
        shares as there are threads, but no more than `most`."""
        about = job.buffer_info()[0], min(numba.get_num_threads(), most)
        return array("q", [number for phase in self._phases[first:] for number in (phase.address, *about)])
