"""Memory that kernels use within a call and leave dirty for the next: named pieces that only grow.

Made by whoever calls kernels again and again (a decoder, a benchmark), one for each thread that does so.
Invariant: a piece starts at a multiple of 64 bytes and stays where it is until more is asked for.
"""

from __future__ import annotations

from array import array
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .task import Task
from .team import Team, start_threads

LINE = 64
KINDS = 64  # shapes of a piece that are remembered


class Workspace:
    """Pieces of memory by name; `moves` counts how often one was made or made larger. Kernels are run through
    here, by its `team`, so that a `Tape` can have their `calls`: each with the job that it points to."""

    def __init__(self) -> None:
        start_threads()
        self.team, self.moves = Team(), 0
        self.calls: list[tuple[array[int], array[int]]] | None = None
        self._pieces: dict[str, tuple[int, int, Tensor]] = {}  # address, bytes, what owns them
        self._tensors: dict[str, dict[tuple[Any, ...], Tensor]] = {}  # of a piece, by shape and dtype,
        self._laid: dict[str, dict[tuple[Any, ...], tuple[np.ndarray, Tensor]]] = {}  # and as numpy has them

    def address(self, name: str, size: int) -> int:
        """Where a piece of at least `size` bytes begins. What it holds is anything."""
        found = self._pieces.get(name)
        if found is None or found[1] < size:
            memory = torch.empty(size + LINE, dtype=torch.uint8)
            begin = -(-memory.data_ptr() // LINE) * LINE
            self._pieces[name] = found = (begin, size, memory)
            self._tensors[name], self._laid[name] = {}, {}
            self.moves += 1
        return found[0]

    def take(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, spare: int = 0) -> Tensor:
        """A piece as a contiguous tensor, with some bytes after it that may be read. The same shape again is
        the same tensor, mostly."""
        kind, known = (shape, dtype), self._tensors.get(name, {})
        if kind not in known:
            size = prod(shape) * dtype.itemsize
            begin = self.address(name, size + spare)
            known, memory = self._tensors[name], self._pieces[name][2]
            if len(known) == KINDS:
                known.clear()
            first = begin - memory.data_ptr()
            known[kind] = memory[first : first + size].view(dtype).view(shape)
        return known[kind]

    def lay(self, name: str, array: np.ndarray) -> Tensor:
        """A copy of an array, where the last one of this name and shape lay. Other than torch's operations
        this does not let go of Python's lock, for which a reader of answers may wait."""
        kind, known = (array.shape, array.dtype), self._laid.get(name, {})
        if kind not in known:
            place = self.take(name, array.shape, torch.from_numpy(array).dtype)
            known = self._laid[name]
            if len(known) == KINDS:
                known.clear()
            known[kind] = place.numpy(), place
        array_there, place = known[kind]
        array_there[...] = array
        return place

    def run(self, task: Task, job: array[int], most: int, first: int = 0) -> None:
        """All phases of a task from `first` on: see `Task.calls`."""
        calls = task.calls(job, most, first)
        self.team.run(calls)
        if self.calls is not None:
            self.calls.append((calls, job))
