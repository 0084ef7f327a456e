"""The batch runner: keeps a job at work for each batch that has not ended.

Run by `app` while the server lives. Invariants: of several servers with one home only one works at batches
(who holds the lock); the store alone says what there is to do, so that a start after a kill is a start.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from .batch_answers import Answerer
from .batch_job import BatchJob
from .batch_lines import TEST_BATCHES, TEST_ENDPOINT
from .batch_store import Batch, BatchStore
from .gate import Gate
from .keys import Keys
from .stored_files import StoredFiles

_LOOK_SECONDS = 1.0  # another server may have taken batches in
_REST_SECONDS = 30.0  # after a job that failed, before it is tried again
_LOG = logging.getLogger("qnext.server")


class BatchRunner:
    def __init__(self, gate: Gate, keys: Keys, files: StoredFiles, batches: BatchStore) -> None:
        self._gate, self._files, self._batches = gate, files, batches
        self._answerer = Answerer(gate, keys)
        self._jobs: dict[int, tuple[BatchJob, asyncio.Future[None]]] = {}
        self._resting: dict[int, float] = {}
        self._news = asyncio.Event()
        self._lock: int | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        work = asyncio.ensure_future(self._run())
        try:
            yield
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    def wake(self) -> None:
        """There is news in the store."""
        self._news.set()

    async def _run(self) -> None:
        try:
            while True:
                try:
                    if await self._may_work():
                        self._look(await asyncio.to_thread(self._batches.unfinished))
                except Exception:
                    _LOG.exception("the batches could not be looked at")
                # not wait_for: before Python 3.12 it loses a cancel that comes together with news
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_SECONDS):
                        await self._news.wait()
                self._news.clear()
        finally:
            jobs = [work for _, work in self._jobs.values()]
            for work in jobs:
                work.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)
            if self._lock is not None:
                os.close(self._lock)

    async def _may_work(self) -> bool:
        """Whether this process is the one that works at batches. The kernel lets go of a dead one's lock."""
        if self._lock is not None:
            return True
        handle = os.open(self._gate.settings.home / "batches.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(handle)
            return False
        self._lock = handle
        await asyncio.to_thread(self._files.sweep)
        return True

    def _look(self, batches: list[Batch]) -> None:
        for number, (_, work) in list(self._jobs.items()):
            if work.done():
                del self._jobs[number]
                if error := work.exception():
                    _LOG.error("a batch failed and is tried again later", exc_info=error)
                    self._resting[number] = time.monotonic() + _REST_SECONDS
        tests = sum(batch.endpoint == TEST_ENDPOINT and batch.number in self._jobs for batch in batches)
        for batch in batches:
            if batch.number in self._jobs:
                if batch.status == "cancelling":
                    self._jobs[batch.number][0].halt.set()
                continue
            if self._resting.get(batch.number, 0) > time.monotonic():
                continue
            self._resting.pop(batch.number, None)
            if batch.endpoint == TEST_ENDPOINT:
                if tests >= TEST_BATCHES and batch.status == "validating":
                    continue
                tests += 1
            self._start(batch)

    def _start(self, batch: Batch) -> None:
        gate = self._gate
        job = BatchJob(batch, self._answerer, gate.service, gate.settings, self._files, self._batches)
        work = asyncio.ensure_future(job.work())
        work.add_done_callback(lambda _: self._news.set())
        self._jobs[batch.number] = job, work
