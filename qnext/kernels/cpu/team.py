"""Teams: the threads that run tasks, one for each `Workspace`.

A step of a small network has some eighty phases of a few microseconds, and OpenMP puts threads to sleep
between them as soon as two Python threads have used it: waking one takes longer than the phase. Here threads
wait by looking, for a few milliseconds after the last call, and then sleep. Invariant: no phase begins before
the one before it is done, and every share of it is run once, however many threads come to help; the one that
calls waits for none that has not begun.
"""

from __future__ import annotations

import os
import platform
import threading
import weakref
from array import array
from functools import cache
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils, types

from .jit import inline, kernel
from .shuffles import take
from .simd import I32, I64, Build, address, call, op, poke_word, word

YIELD = 1024  # looks before others may run
PATIENCE = 60_000  # looks before a helper sleeps, some milliseconds
# In a team's memory, in lines of their own: ROUND, odd while there is something to do; TICKET, the next share
# to be taken; DONE, how many are done; INSIDE, how many helpers look at these. Then what is to be done.
ROUND, TICKET, DONE, INSIDE, CALLS, PHASES, THREADS, SIZE = 0, 64, 128, 192, 256, 264, 272, 320


@op(types.void, address, types.int64, types.int64, types.int64)
def run_code(build: Build, code: Any, *about: Any) -> None:
    """Call a compiled phase by its address, with its job, its share and their number."""
    kind = ir.FunctionType(ir.VoidType(), [I64] * 3)
    build.call(build.inttoptr(code, kind.as_pointer()), about)


@op(types.void, address, types.int64)
def add(build: Build, counter: Any, number: Any) -> None:
    """To a counter (int64 at the address): who sees it sees all that was stored before."""
    build.atomic_rmw("add", build.inttoptr(counter, I64.as_pointer()), number, "seq_cst")


@op(types.int64, address)
def look(build: Build, counter: Any) -> Any:
    """What a counter says now."""
    return build.load_atomic(build.inttoptr(counter, I64.as_pointer()), "seq_cst", 8)


@op(types.void)
def pause(build: Build) -> None:
    """Tell the core that this thread looks at memory until it changes."""
    if platform.machine() in ("x86_64", "AMD64"):
        call(build, "llvm.x86.sse2.pause", ir.VoidType())


@op(types.void)
def give_way(build: Build) -> None:
    """Let another thread have this core, if one wants it."""
    if os.name == "posix":
        build.call(cgutils.get_or_insert_function(build.module, ir.FunctionType(I32, []), "sched_yield"), [])


@cache
def start_threads() -> None:
    """Numba starts its threads when it is first asked how many they are, and tells OpenMP their number. Torch
    would take that for its own: as many again, which look for work while kernels run. Call this before; not
    when something is imported, as what is forked after it cannot have threads of its own."""
    before = torch.get_num_threads()
    numba.get_num_threads()
    torch.set_num_threads(before)


def leave_cores_to_kernels() -> None:
    """In the thread that calls this, torch's own operations stay on one core. Its threads look for work for
    milliseconds after each operation that was worth sharing, where a team's helper should then run."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    other = threading.Thread(target=torch.set_num_threads, args=(before,))
    other.start()  # the setting is of a thread, but new threads begin with what was set last, anywhere
    other.join()


class Team:
    """Whoever calls, and helpers for it. Helpers start when they are first needed, and end with the team."""

    def __init__(self) -> None:
        self._memory = np.zeros(SIZE // 8 + 8, np.int64)
        self._at = -(-self._memory.ctypes.data // 64) * 64
        self._helpers: list[Helper] = []

    def run(self, calls: array[int], threads: int = 0) -> None:
        """Phases, as `Task.calls` gives them, one after the other, by so many threads: as many at least as
        any has shares. Without a number, as many as numba would take."""
        threads = threads or numba.get_num_threads()
        while len(self._helpers) < threads - 1:
            helper = Helper(self._memory, self._at)
            self._helpers.append(helper)
            weakref.finalize(self, helper.end)
        begin, numbers = calls.buffer_info()
        _open(self._at, begin, numbers // 3, threads)
        if threads > 1:
            for helper in self._helpers:
                helper.wake()
        _lead(self._at)


class Helper:
    """A thread that looks for work, and sleeps when there has been none for a while."""

    def __init__(self, memory: np.ndarray, at: int) -> None:
        self._memory, self._at = memory, at  # the memory is kept as long as somebody looks at it
        self._asleep, self._ended, self._bell = False, False, threading.Event()
        self._thread = threading.Thread(target=self._help, name="kernels", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """After work was laid down."""
        if self._asleep:
            self._bell.set()

    def end(self) -> None:
        self._ended = True
        self._bell.set()

    def _help(self) -> None:
        while not self._ended:
            seen = _help(self._at)
            self._asleep = True
            if (
                _round(self._at) == seen
            ):  # else work was laid down before it could be seen that this one sleeps
                self._bell.wait()
            self._asleep = False
            self._bell.clear()


@kernel()
def _open(team, calls, phases, threads):  # type: ignore[no-untyped-def]
    """Lay down what is to be done."""
    poke_word(team + TICKET, 0)
    poke_word(team + DONE, 0)
    poke_word(team + CALLS, calls)
    poke_word(team + PHASES, phases)
    poke_word(team + THREADS, threads)
    add(team + ROUND, 1)


@kernel()
def _lead(team):  # type: ignore[no-untyped-def]
    """Do it, with those who help; nobody looks at it any more when this returns."""
    _take_part(team)
    _wait(team + DONE, word(team + PHASES) * word(team + THREADS))
    add(team + ROUND, 1)
    looks = 0
    while look(team + INSIDE) > 0:
        looks = _look_again(looks)


@kernel()
def _help(team):  # type: ignore[no-untyped-def]
    """Help until there has been nothing to do for a while -> the last round that was seen."""
    seen, now, looks = 0, 0, 0
    while looks < PATIENCE:
        now = look(team + ROUND)
        if now == seen or now % 2 == 0:
            looks = _look_again(looks)
            continue
        add(team + INSIDE, 1)
        if look(team + ROUND) == now:  # else it is over, and the next one may be laid down
            _take_part(team)
        add(team + INSIDE, -1)
        seen, looks = now, 0
    return now


@kernel()
def _round(team):  # type: ignore[no-untyped-def]
    return look(team + ROUND)


@inline
def _take_part(team):  # type: ignore[no-untyped-def]
    """Take shares until there are none. A phase counts as so many as there are threads."""
    phases, threads = word(team + PHASES), word(team + THREADS)
    while True:
        number = take(team + TICKET)
        phase, share = number // threads, number % threads
        if phase >= phases:
            return
        _wait(team + DONE, phase * threads)
        at = word(team + CALLS) + 24 * phase
        shares = word(at + 16)
        if share < shares:
            run_code(word(at), word(at + 8), share, shares)
        add(team + DONE, 1)


@inline
def _wait(counter, least):  # type: ignore[no-untyped-def]
    """Until a counter says so much."""
    looks = 0
    while look(counter) < least:
        looks = _look_again(looks)


@inline
def _look_again(looks):  # type: ignore[no-untyped-def]
    """A moment's pause; now and then others may run."""
    pause()
    if looks % YIELD == YIELD - 1:
        give_way()
    return looks + 1
