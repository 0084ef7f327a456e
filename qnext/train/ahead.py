"""Ahead: worker processes that make the examples of a data source before the trainer asks for them.

Opened by the mixture where `data.workers` is set. Invariant: an example by its part and number is the one
that the part itself makes, since parts are pure functions of the number; only the time is another.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

from .conversations import Example
from .parts import DataSpec
from .worker import EXAMPLES, Block, Request, work

_BLOCKS = 16  # asked for and not yet used up, for each worker: a whole step's rows should lie ready


@dataclass
class _Lane:
    """A part: the block that is read and its number, the first one not yet asked for, how many were read."""

    reading: Block | None = None
    at: int = 0
    next: int = 0
    used: int = 0

    @property
    def ahead(self) -> int:
        """Blocks asked for beyond the one that is read."""
        return self.next - self.at


class Ahead:
    """Blocks are asked for in the proportion in which parts are used, and made by whichever worker is free.

    `close` ends the workers; else they end with this object, or with its process, however that ends.
    """

    def __init__(self, spec: DataSpec, tokenizer_dir: Path, seed: int) -> None:
        """Raises ValueError naming the part or file at fault, once each worker has tried to open it."""
        context = get_context("spawn")  # a copy of a process that has used CUDA would not work
        requests, self._requests = context.Pipe(duplex=False)
        turn = context.Lock()
        self._lanes = [_Lane() for _ in spec.parts]
        self._most = max(_BLOCKS * spec.workers, 2 * len(spec.parts))
        self._asked: set[Request] = set()
        self._made: dict[Request, Block] = {}
        self._workers: dict[Connection, SpawnProcess] = {}
        self.close = Finalize(self, _end, (self._workers, self._requests), exitpriority=10)
        try:
            with _signals_held(), contextlib.closing(requests):
                for _ in range(spec.workers):
                    reply, end = context.Pipe(duplex=False)
                    given = (requests, turn, end, spec, tokenizer_dir, seed)
                    process = context.Process(target=work, args=given, name="qnext data", daemon=True)
                    process.start()
                    end.close()
                    self._workers[reply] = process
            for fault in [self._receive(reply) for reply in self._workers]:
                if fault:
                    raise ValueError(fault)
        except BaseException:
            self.close()
            raise

    def example(self, part: int, count: int) -> Example:
        """Example `count` of a part. Raises ValueError as the part itself would, and where a worker has
        ended."""
        block, place = divmod(count, EXAMPLES)
        lane = self._lanes[part]
        if lane.reading is None or lane.reading.request.block != block:
            lane.reading = self._take(Request(part, block))
        return lane.reading.example(place)

    def _take(self, wanted: Request) -> Block:
        lane = self._lanes[wanted.part]
        if (
            wanted not in self._asked and wanted not in self._made
        ):  # first of all, or another place was gone to
            self._asked = {each for each in self._asked if each.part != wanted.part}
            self._made = {each: made for each, made in self._made.items() if each.part != wanted.part}
            lane.next = wanted.block
            self._ask(wanted.part)
        lane.at, lane.used = wanted.block, lane.used + 1
        self._ask_ahead()
        while wanted not in self._made:
            for reply in wait(list(self._workers)):
                assert isinstance(reply, Connection)
                made: Block = self._receive(reply)
                if made.request in self._asked:  # else it is of a place that was left
                    self._asked.remove(made.request)
                    self._made[made.request] = made
        return self._made.pop(wanted)

    def _ask_ahead(self) -> None:
        """Ask for blocks of the parts that would be the first to run out.

        Little of a part of which little was used: where a run goes on from is only known when it first asks.
        """
        lanes = self._lanes
        while len(self._asked) + len(self._made) < self._most:
            open_to = [i for i, lane in enumerate(lanes) if lane.used and lane.ahead <= 4 * lane.used]
            if not open_to:
                return
            self._ask(min(open_to, key=lambda i: lanes[i].ahead / lanes[i].used))

    def _ask(self, part: int) -> None:
        request = Request(part, self._lanes[part].next)
        self._lanes[part].next += 1
        self._asked.add(request)
        with contextlib.suppress(BrokenPipeError):  # no worker is left: who waits for the answer will say so
            self._requests.send(request)

    def _receive(self, reply: Connection) -> Any:
        try:
            return reply.recv()
        except (EOFError, ConnectionError):
            process = self._workers[reply]
            process.join()
            raise ValueError(
                f"a worker process of data.workers has ended (code {process.exitcode}): its own message says "
                "why; where there is none, memory may be short: lower data.workers"
            ) from None


def _end(workers: dict[Connection, SpawnProcess], requests: Connection) -> None:
    """Ends all at once: workers own nothing that could be left half written."""
    requests.close()
    for process in workers.values():
        process.kill()
    for reply, process in workers.items():
        process.join()
        reply.close()


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Processes begun here never see SIGINT and SIGTERM, which reach whole groups of processes: the trainer
    first ends its step, for which it needs them."""
    resource_tracker.ensure_running()  # begun later, it would let the signals through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
