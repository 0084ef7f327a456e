"""The lifecycle of a server: whether it takes requests, and how many it is answering.

Made by `cli` or `app`; `envelope` counts and refuses, `run` stops it and waits. Invariant: once it is
stopping no request begins, and those that began are counted until their last byte is sent.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Lifecycle:
    """For one event loop, but for `stop`, which may come from a signal handler."""

    def __init__(self) -> None:
        self.stopping = False
        self.running = 0

    def stop(self) -> None:
        self.stopping = True

    @contextmanager
    def request(self) -> Iterator[None]:
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
