"""A stream of one request's outputs: the engine's thread puts, one reader takes, with `for` or `async for`.

Invariant: the reader sees every output in order, and exactly one with a `finish_reason`, as the last.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from queue import SimpleQueue

from .request import Output, Request


class Stream:
    """Made by `Engine.submit`. Reading ends after the finishing output; `abort` may come from any thread."""

    def __init__(self, request: Request, abort: Callable[[Stream], None]) -> None:
        self.request = request
        self._abort = abort
        self._outputs: SimpleQueue[Output | None] = SimpleQueue()  # None: it has ended
        self._waker: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._ended = False

    def put(self, output: Output) -> None:
        """Hand one output to the reader (engine's thread only)."""
        deliver([(self, output)])

    def abort(self) -> None:
        """Ask the engine to stop: the stream then ends with `finish_reason` "abort" within one step."""
        self._abort(self)

    def __iter__(self) -> Iterator[Output]:
        while (output := self._outputs.get()) is not None:
            if output.finish_reason is not None:
                self._ended = True
                self._outputs.put(None)
            yield output
        self._outputs.put(None)  # should others read too

    async def __aiter__(self) -> AsyncIterator[Output]:
        ready = asyncio.Event()
        self._waker = (asyncio.get_running_loop(), ready)
        while not self._ended:
            ready.clear()
            if self._outputs.empty():
                await ready.wait()
                continue
            output = self._outputs.get_nowait()
            if output is None or output.finish_reason is not None:
                self._ended = True
                self._outputs.put(None)
            if output is not None:
                yield output


def deliver(outputs: list[tuple[Stream, Output]]) -> None:
    """Hand outputs to many readers; each event loop among them is woken once."""
    loops: dict[asyncio.AbstractEventLoop, list[asyncio.Event]] = {}
    for stream, output in outputs:
        stream._outputs.put(output)
        if stream._waker is not None:
            loop, event = stream._waker
            loops.setdefault(loop, []).append(event)
    for loop, events in loops.items():
        with suppress(RuntimeError):  # the readers' loop was closed: nobody reads any more
            loop.call_soon_threadsafe(_set_all, events)


def _set_all(events: list[asyncio.Event]) -> None:
    for event in events:
        event.set()
