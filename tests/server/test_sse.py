from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from qnext.server.sse import ClientGone, EventStream, compat_frame, dump, native_frame, while_connected


def test_every_reader_sees_one_line() -> None:
    nasty = "a\nb\rc\x0b\x0c\x1c\x85\u2028\u2029d"
    raw = dump({"text": nasty})
    assert raw.decode().splitlines() == [raw.decode()] and raw.splitlines() == [raw]
    assert json.loads(raw) == {"text": nasty}
    assert dump("é日👍") == '"é日👍"'.encode()
    assert json.loads(dump("\ud800")) == "?"


def test_frames() -> None:
    assert compat_frame({"a": 1}) == b'data: {"a":1}\n\n'
    assert native_frame(3, {"a": 1}) == b'id:3\nevent:result\n:HTTP_STATUS/200\ndata:{"a":1}\n\n'
    assert native_frame(4, {"a": 1}, 500) == (
        b'id:4\nevent:error\n:HTTP_STATUS/500\nstatus:500\ndata:{"a":1}\n\n'
    )


async def _connected() -> dict[str, Any]:
    await asyncio.sleep(60)
    return {"type": "http.disconnect"}


async def _leaving() -> dict[str, Any]:
    await asyncio.sleep(0.01)
    return {"type": "http.disconnect"}


def test_work_is_done_while_the_client_stays() -> None:
    async def work() -> int:
        await asyncio.sleep(0)
        return 7

    assert asyncio.run(while_connected(_connected, work())) == 7


def test_work_is_cancelled_when_the_client_leaves() -> None:
    ends: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ends.append("cancelled")

    with pytest.raises(ClientGone):
        asyncio.run(while_connected(_leaving, work()))
    assert ends == ["cancelled"]


def test_errors_of_the_work_come_through() -> None:
    async def work() -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        asyncio.run(while_connected(_connected, work()))


def test_event_stream_keeps_alive_and_closes_its_source() -> None:
    sent: list[dict[str, Any]] = []
    ends: list[str] = []

    async def frames() -> AsyncGenerator[bytes, None]:
        try:
            yield b"one"
            await asyncio.sleep(0.15)
            yield b"two"
        finally:
            ends.append("closed")

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(EventStream(frames(), 0.05)({"type": "http"}, _connected, send))
    bodies = [message["body"] for message in sent[1:]]
    assert bodies[0] == b"one" and bodies[-2:] == [b"two", b""] and ends == ["closed"]
    assert set(bodies[1:-2]) == {b":keep-alive\n\n"} and 1 <= len(bodies) - 3 <= 3
    assert (b"content-type", b"text/event-stream;charset=UTF-8") in sent[0]["headers"]
    assert [message.get("more_body") for message in sent[1:]] == [True] * (len(sent) - 2) + [False]

    ends.clear()
    with pytest.raises(ClientGone):
        asyncio.run(EventStream(frames(), 9)({"type": "http"}, _leaving, send))
    assert ends == ["closed"]
