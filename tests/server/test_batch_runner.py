"""The runner of batches over stops, starts and lost files: what the store says is what happens."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from qnext.server.admission import Admission
from qnext.server.batch_runner import BatchRunner
from qnext.server.batch_store import Batch, BatchStore
from qnext.server.exchange import Usage
from qnext.server.gate import Gate
from qnext.server.keys import Keys
from qnext.server.prices import UNIT
from qnext.server.service import Service
from qnext.server.settings import Settings
from qnext.server.store import open_store
from qnext.server.stored_files import StoredFiles

from .fake_engine import FakeEngine

CHAT, TEST = "/v1/chat/completions", "/v1/chat/ds-test"


@dataclass
class Office:
    """A home with a key, its files and batches, and runners when a test wants them."""

    store: Engine
    files: StoredFiles
    batches: BatchStore
    gate: Gate
    keys: Keys
    engine: FakeEngine

    def runner(self) -> BatchRunner:
        return BatchRunner(self.gate, self.keys, self.files, self.batches)

    def create(self, count: int, endpoint: str = CHAT) -> Batch:
        model = "batch-test-model" if endpoint == TEST else "tiny-instruct"
        body = {"model": model, "messages": [{"role": "user", "content": "Hi"}]}
        lines = [{"custom_id": str(i), "method": "POST", "url": endpoint, "body": body} for i in range(count)]
        chunks = [f"{json.dumps(line)}\n".encode() for line in lines]
        file = self.files.save(1, chunks, filename="a", purpose="batch")
        batch = self.batches.create(file, endpoint, "24h", 24 * 3600, {}, 1000)
        assert batch is not None
        return batch

    def now(self, batch: Batch) -> Batch:
        found = self.batches.find(1, batch.id)
        assert found is not None
        return found

    async def until(self, batch: Batch, right: Callable[[Batch], bool], seconds: float = 15) -> Batch:
        deadline = time.monotonic() + seconds
        while not right(now := self.now(batch)):
            assert time.monotonic() < deadline, now
            await asyncio.sleep(0.01)
        return now

    def said(self, file_id: str | None) -> list[dict[str, Any]]:
        assert file_id is not None
        assert self.files.find(1, file_id) is not None
        return [json.loads(each) for each in self.files.path(file_id).read_text("utf-8").splitlines()]

    def set(self, batch: Batch, **values: Any) -> None:
        """Changes a row as only time or a kill does."""
        named = ", ".join(f"{name} = :{name}" for name in values)
        with self.store.begin() as connection:
            connection.execute(text(f"UPDATE batches SET {named} WHERE id = :id"), values | {"id": batch.id})

    def rows(self) -> int:
        with self.store.connect() as connection:
            return connection.execute(text("SELECT count(*) FROM batch_answers")).scalar_one()  # type: ignore[no-any-return]


@pytest.fixture
def office(service: Service, engines: dict[str, FakeEngine], tmp_path: Path) -> Any:
    settings = Settings(home=tmp_path)
    store = open_store(tmp_path)
    keys, admission = Keys(store), Admission(store, settings)
    keys.create("tests")
    files = StoredFiles(store, tmp_path / "files", 10**9)
    engine = engines["instruct"]
    engine.reset()
    gate = Gate(service, keys, admission, settings)
    yield Office(store, files, BatchStore(store, files), gate, keys, engine)
    admission.close()
    store.dispose()


def ended(batch: Batch) -> bool:
    return batch.ended


def ids(lines: list[dict[str, Any]]) -> list[int]:
    return [int(line["custom_id"]) for line in lines]


@asynccontextmanager
async def at_work(office: Office) -> AsyncIterator[BatchRunner]:
    runner = office.runner()
    async with runner.running():
        yield runner


def test_a_batch_goes_on_after_a_stop(office: Office) -> None:
    async def work() -> None:
        batch = office.create(40)
        office.engine.delay = 0.01
        for done in (1, 9, 20):  # three starts, each stopped in the middle
            async with at_work(office):
                await office.until(batch, lambda now, done=done: now.completed >= done)  # type: ignore[misc]
            assert office.now(batch).status == "in_progress"
            assert office.rows() == office.now(batch).completed
        office.engine.delay = 0
        async with at_work(office):
            batch = await office.until(batch, ended)
        assert batch.status == "completed" and batch.completed == 40 and office.rows() == 0
        assert ids(office.said(batch.output_file_id)) == [*range(40)] and batch.error_file_id is None
        assert len(office.engine.aborted) >= 1  # what ran at a stop was given up

    asyncio.run(work())


def test_a_batch_has_half_the_price(office: Office) -> None:
    office.keys.change(1, balance=UNIT)
    office.engine.say("Hello there, friend.", cached=4)  # of which nothing more is taken off

    async def work() -> None:
        async with at_work(office):
            await office.until(office.create(3), ended)

    asyncio.run(work())
    rows = office.gate._admission.ledger.entries(1)
    assert len(rows) == 3 and all(row.batch and row.cached_tokens == 4 for row in rows)
    for row in rows:
        assert row.cost == (row.input_tokens * 150_000 + row.output_tokens * 1_200_000) // 2 > 0
    assert office.keys.find(1).balance == UNIT - sum(row.cost for row in rows)


@pytest.mark.parametrize("status", ["validating", "in_progress", "finalizing", "cancelling"])
def test_a_start_finds_every_state(office: Office, status: str) -> None:
    """As a kill leaves them: some lines answered, some not, maybe half an output file."""

    async def work() -> None:
        batch = office.create(10)
        if status != "validating":
            assert office.batches.accept(batch, "tiny-instruct", 10)
            for line in range(1, 11 if status == "finalizing" else 5):
                office.batches.answer(batch, line, json.dumps({"custom_id": str(line - 1)}), Usage(2, 3))
        if status == "finalizing":
            assert office.batches.finalize(batch)
            name = "file-batch_output-" + batch.id.removeprefix("batch_")
            office.files.path(name).write_text("renamed, but never recorded")
            office.files.path(name + ".x.part").write_text("half")
        if status == "cancelling":
            assert office.batches.cancel(batch) is not None
        async with at_work(office):
            batch = await office.until(batch, ended)
        asked = len(office.engine.requests)
        if status == "cancelling":
            assert batch.status == "cancelled" and asked == 0
            assert ids(office.said(batch.output_file_id)) == [*range(4)]
            assert ids(office.said(batch.error_file_id)) == [*range(4, 10)]
        else:
            assert batch.status == "completed"
            assert asked == {"validating": 10, "in_progress": 6, "finalizing": 0}[status]
            assert ids(office.said(batch.output_file_id)) == [*range(10)]
        files = {path.name for path in office.files.path("x").parent.iterdir()}
        assert files == {file.id for file in office.files.listed(1, 99)}

    asyncio.run(work())


def test_a_batch_is_cancelled_before_it_was_looked_at(office: Office) -> None:
    async def work() -> None:
        batch = office.create(5)
        assert office.batches.cancel(batch) is not None
        assert not office.batches.accept(batch, "tiny-instruct", 5)  # its check comes too late
        async with at_work(office):
            batch = await office.until(batch, ended)
        assert (batch.status, batch.total, batch.failed) == ("cancelled", 0, 0)
        assert batch.output_file_id is None and batch.error_file_id is None
        assert office.engine.requests == []

    asyncio.run(work())


def test_a_line_keeps_its_first_answer(office: Office) -> None:
    batch = office.create(2)
    office.batches.answer(batch, 1, "too early", Usage(9, 9))
    office.batches.accept(batch, "tiny-instruct", 2)
    office.batches.answer(batch, 1, "first", Usage(2, 3, 1, 1))
    office.batches.answer(batch, 1, "second", None)
    now = office.now(batch)
    assert (now.completed, now.failed, now.input, now.output, now.reasoning, now.cached) == (1, 0, 2, 3, 1, 1)
    assert [*office.batches.answers(batch, failed=False)] == [(1, "first")]
    assert [*office.batches.answers(batch, failed=True)] == []
    office.batches.finalize(batch)
    office.batches.end(batch, "completed", None, None, 0)
    office.batches.answer(batch, 2, "too late", Usage(2, 3))
    assert office.now(batch).completed == 1 and office.rows() == 0
    office.batches.end(batch, "expired", None, None, 5)
    assert office.batches.cancel(batch) is None and not office.batches.fail(batch, [])
    assert office.now(batch).status == "completed" and office.now(batch).failed == 0


def test_time_runs_out(office: Office) -> None:
    async def work() -> None:
        office.engine.delay = 0.02
        batch = office.create(50)
        async with at_work(office):
            await office.until(batch, lambda now: now.completed >= 2)
        office.set(batch, expires=time.time() + 0.5)
        begun = time.monotonic()
        async with at_work(office):
            batch = await office.until(batch, ended)
        assert batch.status == "expired" and 0.3 < time.monotonic() - begun < 5
        answered, rest = office.said(batch.output_file_id), office.said(batch.error_file_id)
        assert len(answered) == batch.completed >= 2 and len(rest) == batch.failed > 0
        assert sorted(ids(answered + rest)) == [*range(50)] and ids(rest) == sorted(ids(rest))
        assert {line["error"]["code"] for line in rest} == {"batch_expired"}
        late = office.create(3)  # the server was off all the time
        office.set(late, expires=time.time() - 1)
        async with at_work(office):
            late = await office.until(late, ended)
        assert late.status == "expired" and late.output_file_id is None
        assert ids(office.said(late.error_file_id)) == [0, 1, 2]

    asyncio.run(work())


def test_only_one_server_of_a_home_works_at_batches(office: Office) -> None:
    async def work() -> None:
        office.engine.delay = 0.005
        first, second = office.runner(), office.runner()
        async with first.running():
            await asyncio.sleep(0.1)
            async with second.running():
                batch = office.create(20)
                second.wake()  # it was created there, and the first one finds it
                batch = await office.until(batch, ended)
                assert batch.completed == 20 and len(office.engine.requests) == 20
                other = office.create(5)
        async with second.running():  # the first has gone
            other = await office.until(other, ended)
        assert other.completed == 5

    asyncio.run(work())


def test_a_lost_input_fails_its_batch(office: Office) -> None:
    async def work() -> None:
        before, during = office.create(3), office.create(3)
        office.batches.accept(during, "tiny-instruct", 3)
        for batch in (before, during):
            office.files.path(batch.input_file_id).unlink()
        async with at_work(office):
            for batch in (before, during):
                now = await office.until(batch, ended)
                assert now.status == "failed" and now.errors[0]["code"] == "file_not_found"

    asyncio.run(work())


def test_a_stop_is_not_lost_among_news(office: Office) -> None:
    async def work() -> None:
        for turns in range(6):  # of the event loop between the news and the stop
            runner = office.runner()
            async with asyncio.timeout(5):
                async with runner.running():
                    await asyncio.sleep(0.05)
                    runner.wake()
                    for _ in range(turns):
                        await asyncio.sleep(0)

    asyncio.run(work())


def test_a_disk_that_is_full_for_a_while(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        batch = office.create(3)
        full = OSError(28, "No space left on device")

        def fail(*_: Any, **__: Any) -> None:
            raise full

        monkeypatch.setattr("qnext.server.batch_runner._REST_SECONDS", 0.1)
        with monkeypatch.context() as patch:
            patch.setattr(StoredFiles, "written", fail)
            async with at_work(office):
                batch = await office.until(batch, lambda now: now.status == "finalizing")
                await asyncio.sleep(0.3)
                assert not office.now(batch).ended
        async with at_work(office):
            batch = await office.until(batch, ended)
        assert batch.status == "completed" and len(office.engine.requests) == 3

    asyncio.run(work())


def test_lines_of_all_batches_together_are_bounded_and_none_starves(office: Office) -> None:
    async def work() -> None:
        office.engine.delay = 0.01
        office.engine.say("Hi")
        most, running = 0, 0
        submit = office.engine.submit

        def counted(request: Any) -> Any:
            nonlocal most, running
            running += 1
            most = max(most, running)
            stream = submit(request)
            put = stream.put

            def watched(output: Any) -> None:
                nonlocal running
                running -= output.finish_reason is not None
                put(output)

            stream.put = watched
            return stream

        office.engine.submit = counted  # type: ignore[method-assign]
        try:
            large, small = office.create(200), office.create(5)
            async with at_work(office):
                await office.until(small, ended)
                assert not office.now(large).ended
                await office.until(large, ended)
        finally:
            del office.engine.submit  # type: ignore[method-assign]
        assert 2 <= most <= office.gate.settings.batch_concurrency

    asyncio.run(work())


def test_two_jobs_of_the_test_model_at_once(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work() -> None:
        made = [office.create(2, TEST) for _ in range(4)]
        others = office.create(2)
        slow = asyncio.Event()

        async def wait(*_: Any) -> Any:
            await slow.wait()
            raise AssertionError("never asked for")

        with monkeypatch.context() as patch:
            patch.setattr("qnext.server.batch_answers.Answerer.answer", wait)
            async with at_work(office):
                await office.until(others, lambda now: now.status == "in_progress")
                await asyncio.sleep(0.2)
                assert [office.now(batch).status for batch in made] == [
                    *["in_progress"] * 2,
                    *["validating"] * 2,
                ]
        async with at_work(office):
            for batch in made:
                assert (await office.until(batch, ended)).status == "completed"

    asyncio.run(work())
