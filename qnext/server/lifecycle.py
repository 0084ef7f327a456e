"""The lifecycle of a server: whether it takes requests, and how many it is answering.

Made by `cli` or `app`; `envelope` counts and refuses, `run` stops it and waits, and says when there are too
many connections. Invariant: once it is
stopping no request begins, and those that began are counted until their last byte is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Lifecycle:
    """For one event loop, but for `stop`, which may come from a signal handler."""

    def __init__(self) -> None:
        self.stopping = False
        self.running = 0
        self.full: Callable[[], bool] = lambda: False

    def stop(self) -> None:
        self.stopping = True

    @contextmanager
    def request(self) -> Iterator[None]:
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
