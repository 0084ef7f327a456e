from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from qnext.server.errors import ApiError
from qnext.server.limits import Limits


@pytest.fixture(scope="module", params=["memory", "redis"])
def storage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a place to count in: this process, or a Redis of our own."""
    if request.param == "memory":
        yield "memory://"
        return
    if shutil.which("redis-server") is None:
        pytest.skip("no redis-server on this machine")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("redis")
    command = ["redis-server", "--port", str(port), "--save", "", "--dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 10
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert time.monotonic() < until
        time.sleep(0.02)
    yield f"redis://127.0.0.1:{port}"
    process.terminate()
    process.wait(10)


def run(storage: str, work: Callable[[Limits], Awaitable[None]], clock: Callable[[], float]) -> None:
    async def main() -> None:
        limits = Limits(storage, clock)
        try:
            await work(limits)
        finally:
            await limits.close()

    asyncio.run(main())


def half_past() -> float:
    """The middle of a minute of the clock."""
    return 1_795_600_000.0 // 60 * 60 + 30


async def refusal(work: Awaitable[object]) -> ApiError:
    with pytest.raises(ApiError) as error:
        await work
    return error.value


def test_requests(storage: str) -> None:
    async def work(limits: Limits) -> None:
        asked = await asyncio.gather(*(limits.take_request(1, 5) for _ in range(8)), return_exceptions=True)
        assert len([each for each in asked if isinstance(each, int)]) == 5
        error = await refusal(limits.take_request(1, 5))
        assert error.kind == "requests" and error.retry_after is not None and 55 < error.retry_after <= 61
        assert await limits.take_request(2, 5) == 4

    run(storage, work, half_past)


def test_tokens(storage: str) -> None:
    async def work(limits: Limits) -> None:
        minute, left = await limits.take_tokens(3, 60, 100)
        assert left == 40
        error = await refusal(limits.take_tokens(3, 41, 100))
        assert error.kind == "tokens" and error.retry_after == 31 and error.retry
        assert "40 are left" in error.message
        never = await refusal(limits.take_tokens(3, 101, 100))
        assert not never.retry and never.headers["x-should-retry"] == "false"
        limits.return_tokens(minute, 25)
        await limits.settled()
        assert (await limits.take_tokens(3, 65, 100))[1] == 0

    run(storage, work, half_past)


def test_many_at_once_never_take_more_than_there_is(storage: str) -> None:
    async def work(limits: Limits) -> None:
        taken, most = 0, 0

        async def one(i: int) -> None:
            nonlocal taken, most
            tokens = i % 7 + 1
            try:
                minute, _ = await limits.take_tokens(4, tokens, 50)
            except ApiError:
                return
            taken += tokens
            most = max(most, taken)
            await asyncio.sleep(0.001)
            taken -= tokens
            limits.return_tokens(minute, tokens)

        await asyncio.gather(*(one(i) for i in range(300)))
        await limits.settled()
        assert 40 <= most <= 50
        assert (await limits.take_tokens(4, 50, 50))[1] == 0  # all came back

    run(storage, work, half_past)


def test_what_comes_back_late_gives_the_next_minute_nothing(storage: str) -> None:
    now = half_past()

    async def work(limits: Limits) -> None:
        nonlocal now
        minute, _ = await limits.take_tokens(5, 100, 100)
        now += 60
        _, left = await limits.take_tokens(5, 70, 100)
        assert left == 30
        limits.return_tokens(minute, 100)
        await limits.settled()
        assert (await refusal(limits.take_tokens(5, 31, 100))).retry_after == 31

    run(storage, work, lambda: now)


def test_answers_at_once() -> None:
    async def work(limits: Limits) -> None:
        limits.enter(1, 2)
        limits.enter(1, 2)
        limits.enter(2, 1)
        with pytest.raises(ApiError, match="Concurrency limit exceeded"):
            limits.enter(1, 2)
        limits.leave(1)
        limits.enter(1, 2)

    run("memory://", work, half_past)


def test_a_storage_that_is_gone_is_told_as_such(tmp_path: Path) -> None:
    async def work(limits: Limits) -> None:
        for asked in (limits.take_request(1, 5), limits.take_tokens(1, 5, 10)):
            error = await refusal(asked)
            assert error.kind == "capacity" and error.retry_after
        limits.return_tokens("qnext-tpm/1/1", 5)  # is noted in the log, and no more
        await limits.settled()

    run("redis://127.0.0.1:1", work, half_past)


@pytest.mark.parametrize("url", ["nowhere", "mysql://x", ""])
def test_a_storage_that_is_none(url: str) -> None:
    with pytest.raises(ValueError, match=r"QNEXT_LIMITS_STORAGE is .*: give memory:// or redis://"):
        Limits(url)
