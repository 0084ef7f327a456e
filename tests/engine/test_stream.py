"""The way of outputs from the engine's thread to a reader, with `for` and with `async for`."""

from __future__ import annotations

import asyncio
import gc
import time
from threading import Thread

from qnext.engine.request import Output, Request
from qnext.engine.stream import Stream

from .rows import stream

LAST = Output((9,), finish_reason="stop")
OUTPUTS = [*(Output((i,)) for i in range(50)), LAST]


def feed(target: Stream, outputs: list[Output]) -> Thread:
    def put() -> None:
        for output in outputs:
            target.put(output)

    thread = Thread(target=put)
    thread.start()
    return thread


async def collect(source: Stream) -> list[Output]:
    return [output async for output in source]


def test_a_reader_sees_all_in_order() -> None:
    made = stream()
    thread = feed(made, OUTPUTS)
    assert list(made) == OUTPUTS
    thread.join()


def test_outputs_put_before_the_reader_came() -> None:
    made = stream()
    feed(made, OUTPUTS).join()
    assert list(made) == OUTPUTS


def test_a_reader_may_pause_and_come_back() -> None:
    made = stream()
    feed(made, OUTPUTS).join()
    first = next(iter(made))
    assert [first, *made] == OUTPUTS
    assert list(made) == []  # read to its end


def test_async_reader_sees_all_in_order() -> None:
    made = stream()

    async def read() -> list[Output]:
        thread = feed(made, OUTPUTS)
        seen = await collect(made)
        thread.join()
        return seen

    assert asyncio.run(read()) == OUTPUTS


def test_async_reader_waits_for_what_comes_late() -> None:
    made = stream()

    async def read() -> list[Output]:
        task = asyncio.create_task(collect(made))
        for output in OUTPUTS[-3:]:
            await asyncio.sleep(0.002)
            assert not task.done()
            await asyncio.to_thread(made.put, output)
        return await asyncio.wait_for(task, 60)

    assert asyncio.run(read()) == OUTPUTS[-3:]


def test_async_reader_may_pause_and_come_back() -> None:
    made = stream()
    feed(made, OUTPUTS).join()

    async def read() -> list[Output]:
        seen = []
        async for output in made:
            seen.append(output)
            if len(seen) == 3:
                break
        return seen + await collect(made) + await collect(made)

    assert asyncio.run(read()) == OUTPUTS


def test_many_async_readers_of_their_own_streams() -> None:
    made = [stream() for _ in range(8)]

    async def read() -> list[list[Output]]:
        threads = [feed(each, OUTPUTS) for each in made]
        seen = await asyncio.gather(*map(collect, made))
        for thread in threads:
            thread.join()
        return seen

    assert asyncio.run(read()) == [OUTPUTS] * 8


def test_a_cancelled_reader_loses_nothing() -> None:
    made = stream()

    async def read() -> list[Output]:
        task = asyncio.create_task(collect(made))
        await asyncio.sleep(0.002)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        feed(made, OUTPUTS).join()
        return await collect(made)

    assert asyncio.run(read()) == OUTPUTS


def test_a_reader_whose_loop_was_closed_does_not_hurt_the_engine() -> None:
    made = stream()

    async def leave() -> None:
        made.put(OUTPUTS[0])
        async for _ in made:
            break

    asyncio.run(leave())
    gc.collect()
    for output in OUTPUTS[1:]:
        made.put(output)
    assert list(made) == OUTPUTS[1:]


def test_readers_in_two_threads_share_one_stream_and_both_end() -> None:
    made, seen = stream(), []  # type: Stream, list[Output]
    readers = [Thread(target=lambda: seen.extend(made)) for _ in range(2)]
    for reader in readers:
        reader.start()
    feed(made, OUTPUTS[:-1]).join()
    deadline = time.monotonic() + 60
    while len(seen) < len(OUTPUTS) - 1 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)  # now both wait for the last one, which only one of them will get
    made.put(LAST)
    for reader in readers:
        reader.join(60)
        assert not reader.is_alive()
    assert sorted(output.token_ids for output in seen) == sorted(output.token_ids for output in OUTPUTS)


def test_abort_names_the_stream() -> None:
    asked: list[Stream] = []
    made = Stream(Request((1,)), asked.append)
    made.abort()
    assert asked == [made]
