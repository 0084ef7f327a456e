"""Server-sent events: the two wire forms, and the response that sends them while the client listens.

The dialects' replies call the encoders, `app` the rest. Invariants: one JSON object a line; a client that has
gone away cancels the work within one turn of the loop; a silent stream gets a comment line every few seconds.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b":keep-alive\n\n"
# Line ends for readers that split text the Unicode way; JSON itself leaves them bare.
_LINE_ENDS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


class ClientGone(Exception):
    """The client closed its connection; there is nobody to answer."""


def dump(value: Any) -> bytes:
    """JSON in UTF-8 on one line, for every reader's notion of a line."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if not text.isascii():
        text = text.translate(_LINE_ENDS)
    return text.encode("utf-8", "replace")


def compat_frame(payload: dict[str, Any]) -> bytes:
    return b"data: %b\n\n" % dump(payload)


def typed_frame(kind: str, payload: dict[str, Any]) -> bytes:
    """A frame of the dialects whose events have names; the payload tells the name as well."""
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), dump({"type": kind, **payload}))


def native_frame(number: int, payload: dict[str, Any], status: int = 200) -> bytes:
    """No space after the colons: SDKs compare the words after them. The `status` field is what they
    report."""
    if status == 200:
        return b"id:%d\nevent:result\n:HTTP_STATUS/200\ndata:%b\n\n" % (number, dump(payload))
    head = b"id:%d\nevent:error\n:HTTP_STATUS/%d\nstatus:%d\n" % (number, status, status)
    return b"%bdata:%b\n\n" % (head, dump(payload))


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; cancels it and raises ClientGone when the client goes away first.

    To be called only when the request's body has been read.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Sends `frames` as they come, and a comment after `silence` seconds without one; closes them in the
    end."""

    media_type = "text/event-stream;charset=UTF-8"

    def __init__(self, frames: AsyncGenerator[bytes, None], silence: float) -> None:
        self.status_code = 200
        self.background = None
        self._frames = frames
        self._silence = silence
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        async with aclosing(self._frames):
            await while_connected(receive, self._send_all(send))

    async def _send_all(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        last = loop.time()

        async def pulse() -> None:
            nonlocal last
            while True:
                await asyncio.sleep(max(last + self._silence - loop.time(), 0.01))
                if loop.time() - last >= self._silence:
                    await send({"type": "http.response.body", "body": KEEP_ALIVE, "more_body": True})
                    last = loop.time()

        pulsing = asyncio.ensure_future(pulse())
        try:
            async for frame in self._frames:
                await send({"type": "http.response.body", "body": frame, "more_body": True})
                last = loop.time()
        finally:
            pulsing.cancel()
            await asyncio.gather(pulsing, return_exceptions=True)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
