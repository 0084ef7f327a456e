"""Tasks: kernels in phases, each cut into shares that threads run at once.

Run through `Workspace.run` by a `Team`. Invariant: a phase is compiled once, by itself.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from functools import cached_property

import numba
from numba.core import types

from .jit import PLAIN, kept


class Task:
    """Functions (job, share, shares) -> None: phases of some work that is cut into shares, `job` being the
    address of some int64 numbers (see `reader`). They are compiled when first asked for, and by themselves:
    what a parallel loop calls is compiled five times over."""

    def __init__(self, *phases: Callable[[int, int, int], None]) -> None:
        self._phases = phases

    @cached_property
    def _addresses(self) -> list[int]:
        with kept():
            compile_phase = numba.cfunc(types.void(*[types.int64] * 3), cache=True, **PLAIN)
            self._compiled = [compile_phase(phase) for phase in self._phases]  # they own the code
        return [int(each.address or 0) for each in self._compiled]

    def calls(self, job: array[int], most: int, first: int = 0) -> array[int]:
        """What a team runs, while the job is there: from phase `first` on, three numbers for each. As many
        shares as there are threads, but no more than `most`."""
        about = job.buffer_info()[0], min(numba.get_num_threads(), most)
        return array("q", [number for code in self._addresses[first:] for number in (code, *about)])
