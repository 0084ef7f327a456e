"""A stream of one request's outputs: the engine's thread puts, one reader takes, with `for` or `async for`.

Invariant: the reader sees every output in order, and exactly one with a `finish_reason`, as the last.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from threading import Condition

from .request import Output, Request


class Stream:
    """Made by `Engine.submit`. Reading ends after the finishing output; `abort` may come from any thread."""

    def __init__(self, request: Request, abort: Callable[[Stream], None]) -> None:
        self.request = request
        self._abort = abort
        self._outputs: deque[Output] = deque()
        self._ready = Condition()
        self._wake: Callable[[], object] | None = None
        self._ended = False

    def put(self, output: Output) -> None:
        """Hand one output to the reader (engine's thread only)."""
        with self._ready:
            self._outputs.append(output)
            self._ready.notify_all()
            wake = self._wake
        if wake is not None:
            wake()

    def abort(self) -> None:
        """Ask the engine to stop: the stream then ends with `finish_reason` "abort" within one step."""
        self._abort(self)

    def _take(self) -> Output | None:
        """The next output, if there is one (with `_ready` held)."""
        if not self._outputs:
            return None
        output = self._outputs.popleft()
        self._ended = output.finish_reason is not None
        return output

    def __iter__(self) -> Iterator[Output]:
        while True:
            with self._ready:
                while not (self._outputs or self._ended):
                    self._ready.wait()
                output = self._take()
            if output is None:
                return
            yield output

    async def __aiter__(self) -> AsyncIterator[Output]:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # the reader's loop was closed: nobody reads any more
                loop.call_soon_threadsafe(ready.set)

        with self._ready:
            self._wake = wake
        while not self._ended:
            ready.clear()
            with self._ready:
                output = self._take()
            if output is None:
                await ready.wait()
            else:
                yield output
