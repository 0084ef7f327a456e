"""The work on one batch: check its input, answer its lines, write its files.

Made by `batch_runner`, one for each batch that has not ended. Invariants: it goes on from what the store
says, so that it may be killed anywhere; each line of the input is in one of the two files, once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from heapq import merge

from .batch_answers import Answerer, unanswered
from .batch_lines import Bounds, Fault, Line, Place, check, take
from .batch_store import Batch, BatchStore
from .errors import ApiError
from .service import Service
from .settings import Settings
from .stored_files import OUTPUT, StoredFile, StoredFiles

_AT_ONCE = 8  # lines read ahead


class BatchJob:
    """`halt` makes it stop answering lines and look at what the batch has become."""

    def __init__(
        self,
        batch: Batch,
        answerer: Answerer,
        service: Service,
        settings: Settings,
        files: StoredFiles,
        batches: BatchStore,
    ) -> None:
        self._batch, self._answerer, self._service = batch, answerer, service
        self._files, self._batches, self._concurrency = files, batches, settings.batch_concurrency
        self._input = files.path(batch.input_file_id)
        self._bounds = Bounds(settings.max_batch_lines, settings.max_line_bytes)
        self._keeping: set[asyncio.Future[None]] = set()
        self.halt = asyncio.Event()

    async def work(self) -> None:
        """From wherever the batch is to its end. Raises OSError when the disk fails it."""
        status = self._batch.status
        try:
            if status == "validating":
                status = await asyncio.to_thread(self._check)
            if status == "in_progress":
                await self._answer_lines()
        except FileNotFoundError:
            gone = Fault("file_not_found", f"the input file {self._batch.input_file_id} is no longer there")
            await asyncio.to_thread(self._batches.fail, self._batch, [gone.told()])
        ending = asyncio.ensure_future(asyncio.to_thread(self._end))
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:  # a stop waits for files that are half written
            await asyncio.gather(ending, return_exceptions=True)
            raise

    def _check(self) -> str:
        """The batch's status after its input was checked."""
        found = check(self._input, self._batch.endpoint, self._bounds, self._serves)
        if found.faults:
            self._batches.fail(self._batch, [fault.told() for fault in found.faults])
            return "failed"
        going = self._batches.accept(self._batch, found.model, found.total)
        return "in_progress" if going else "cancelling"

    def _serves(self, model: str) -> bool:
        try:
            self._service.find(model)
        except ApiError:
            return False
        return True

    async def _answer_lines(self) -> None:
        """Until all are answered, time is up, or `halt`."""
        lines, halt = asyncio.ensure_future(self._answer_all()), asyncio.ensure_future(self.halt.wait())
        try:
            left = max(self._batch.expires - time.time(), 0)
            await asyncio.wait({lines, halt}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        finally:
            finished = lines.done()
            for each in (lines, halt):
                each.cancel()
            await asyncio.gather(lines, halt, return_exceptions=True)
            await asyncio.gather(*self._keeping, return_exceptions=True)
        if finished:
            lines.result()

    async def _answer_all(self) -> None:
        answered = await asyncio.to_thread(self._batches.answered, self._batch)
        room = asyncio.Semaphore(self._concurrency)
        failures: list[BaseException] = []
        running: set[asyncio.Task[None]] = set()

        def done(task: asyncio.Task[None]) -> None:
            running.discard(task)
            room.release()
            if not task.cancelled() and (error := task.exception()) is not None:
                failures.append(error)

        place: Place | None = Place()
        try:
            while place is not None:
                lines, place = await asyncio.to_thread(
                    take, self._input, place, _AT_ONCE, self._bounds.line_bytes
                )
                for line in lines:
                    if line.number not in answered:
                        await room.acquire()
                        if failures:
                            raise failures[0]
                        task = asyncio.ensure_future(self._answer(line))
                        running.add(task)
                        task.add_done_callback(done)
            await asyncio.gather(*running)
            if failures:
                raise failures[0]
        finally:
            for task in (left := list(running)):
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    async def _answer(self, line: Line) -> None:
        said = await self._answerer.answer(self._batch.key_id, self._batch.endpoint, line)
        # An answer that is there is kept, also when the batch is halted right now.
        keeping = asyncio.ensure_future(
            asyncio.to_thread(self._batches.answer, self._batch, line.number, said.text, said.usage)
        )
        self._keeping.add(keeping)
        keeping.add_done_callback(self._keeping.discard)
        await asyncio.shield(keeping)

    def _end(self) -> None:
        """Write the files of a batch whose lines have had their time."""
        ended = self._batches.finalize(self._batch)
        batch = self._batches.find(self._batch.key_id, self._batch.id)
        if batch is None or batch.ended:
            return
        left = self._left(batch)
        status = "cancelled" if not ended else "expired" if left else "completed"
        with ExitStack() as stack:

            def write(kind: str, texts: Iterator[tuple[int, str]]) -> StoredFile:
                return stack.enter_context(
                    self._files.written(
                        batch.key_id,
                        (f"{text}\n".encode() for _, text in texts),
                        filename=f"{batch.id}_{kind}.jsonl",
                        purpose=OUTPUT,
                        # the same name whoever writes it: what a killed server left is overwritten
                        file_id=f"file-batch_{kind}-{batch.id.removeprefix('batch_')}",
                    )
                )

            answers, failed = (self._batches.answers(batch, failed=each) for each in (False, True))
            rest = ((line.number, unanswered(line, status)) for line in left)
            output = write("output", answers) if batch.completed else None
            errors = write("error", merge(failed, rest)) if batch.failed or left else None
            self._batches.end(batch, status, output, errors, len(left))

    def _left(self, batch: Batch) -> list[Line]:
        """The lines without an answer, their bodies left out."""
        left: list[Line] = []
        place: Place | None = Place() if batch.in_progress_at else None
        answered = self._batches.answered(batch) if place else set[int]()
        try:
            while place is not None and len(answered) + len(left) < batch.total:
                lines, place = take(self._input, place, _AT_ONCE, self._bounds.line_bytes)
                left += [
                    Line(each.number, each.custom_id, {}) for each in lines if each.number not in answered
                ]
        except FileNotFoundError:
            pass  # then nobody knows their names
        return left
