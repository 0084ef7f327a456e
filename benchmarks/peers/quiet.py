"""A quiet moment on shared cores: measured stretches take turns, and go before all other work.

Used by the drivers around what they time. With the environment variable QNEXT_BENCH_LOCK naming a file, one
process at a time measures, in real-time order where the system allows it; without it nothing is done.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

LOCK = "QNEXT_BENCH_LOCK"


@contextmanager
def quiet() -> Iterator[None]:
    """Around what this process times."""
    with turn() as waited:
        if waited:
            _schedule(os.SCHED_RR, 1)
        try:
            yield
        finally:
            if waited:
                _schedule(os.SCHED_OTHER, 0)


@contextmanager
def turn() -> Iterator[bool]:
    """Holds the lock, if there is one to hold."""
    path = os.environ.get(LOCK)
    if not path:
        yield False
        return
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield True


def first(words: list[str]) -> list[str]:
    """The command line of a program that is to go before all other work."""
    return ["chrt", "-r", "1", *words] if os.environ.get(LOCK) else words


def _schedule(policy: int, priority: int) -> None:
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setscheduler(int(thread), policy, os.sched_param(priority))
        except (PermissionError, ProcessLookupError):  # no right to it, or a thread that is gone
            continue
