"""Connections: how many there may be, and the watch that closes those that keep the server waiting.

Made by `run`. Invariants: a client that does not send the head of its request, or does not read what it is
sent, has its connection closed after so many seconds, and with it goes all that was held for it; what is kept
open between two requests is for the keep-alive time to judge. (Slow bodies are told so by `envelope`.)
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

try:
    import resource
except ImportError:  # no Unix
    resource = None  # type: ignore[assignment]

# Of the descriptors a process may have, those for files, the store and what comes in before it is counted.
KEPT_BACK = 128
_MOST = 2**16
_LOG = logging.getLogger("qnext.server")


class Connection(Protocol):
    """What is looked at in uvicorn's connections, whichever parser they have."""

    cycle: Any
    transport: asyncio.Transport
    timeout_keep_alive_task: asyncio.TimerHandle | None


@dataclass
class _Waiting:
    since: float
    unsent: int


class Watch:
    """`seconds` is how long a connection may keep the server waiting."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waiting: dict[Connection, _Waiting] = {}

    def sweep(self, connections: Iterable[Connection], now: float) -> None:
        """To be called about once a second; `now` is any clock's, in seconds."""
        before, self._waiting = self._waiting, {}
        for connection in connections:
            unsent = connection.transport.get_write_buffer_size()
            if not unsent and not _wants_head(connection):
                continue
            known = before.get(connection)
            # Whoever has read something since is not stuck, nor is one who has begun to send after reading.
            if known is None or unsent < known.unsent or (unsent and not known.unsent):
                known = _Waiting(now, unsent)
            self._waiting[connection] = _Waiting(known.since, unsent)
            if now - known.since >= self._seconds:
                connection.transport.abort()


class Shortage:
    """An event loop's handler of exceptions that says once in a while that there is no descriptor for another
    connection: the loop tries again each second, and would tell of two thousand failures each time. When the
    server stops before that second is over there is nothing to try again for, which is no failure."""

    def __init__(self, every: float = 60.0) -> None:
        self._every, self._said = every, float("-inf")

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        message, exception = context.get("message", ""), context.get("exception")
        if "out of system resource" in message:
            if loop.time() - self._said >= self._every:
                self._said = loop.time()
                _LOG.warning("no file descriptor is left: new connections wait (raise the limit: ulimit -Hn)")
        elif not ("_start_serving" in message and isinstance(exception, ValueError)):
            loop.default_exception_handler(context)


def room() -> int | None:
    """How many connections this process may have, once its limit of descriptors is raised as far as it goes;
    None where there is no such limit."""
    if resource is None:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST if hard == resource.RLIM_INFINITY else min(hard, _MOST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return None if soft == resource.RLIM_INFINITY else max(soft - KEPT_BACK, soft // 2)


def _wants_head(connection: Connection) -> bool:
    """Whether no request is being answered, and this is not the quiet between two of them."""
    answering = connection.cycle is not None and not connection.cycle.response_complete
    return not answering and connection.timeout_keep_alive_task is None
