"""The envelope of every request: its id, its normal path, and the last net under it.

The outermost layer of `app`. Invariants: every answer carries `X-Request-ID`; a path with double slashes or a
slash at its end is the path without them; no exception reaches a client but as the dialect's internal error;
while the server stops, only those who watch it are answered; a body comes in time or is refused.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import (
    ApiError,
    anthropic_body,
    at_capacity,
    compat_body,
    internal,
    native_body,
    slow_body,
    stopping,
)
from .lifecycle import Lifecycle
from .sse import ClientGone, dump

PROBES = ("/healthz", "/readyz", "/metrics")
_LEAST_RATE = 1000  # bytes a second that a body must have, on the whole, once its time is over
_LOG = logging.getLogger("qnext.server")


def request_id(request: Request) -> str:
    return str(request.scope["qnext.request_id"])


def response_headers(request: Request) -> dict[str, str]:
    """Headers that the answer to a request gets beside its own, also when it is an error; to be added to."""
    found: dict[str, str] = request.scope["qnext.headers"]
    return found


def is_native(path: str) -> bool:
    """Which dialect speaks at a path, for errors as well: native below /api, and at its path below other
    bases."""
    compatible = path.startswith("/api/v2/apps/protocols/compatible-mode/")
    return (path.startswith("/api/") and not compatible) or "/services/aigc/" in path


def is_anthropic(path: str) -> bool:
    """Whether Anthropic's dialect is spoken at a path: below its own base, and where its SDK asks without
    one."""
    return path.startswith("/apps/anthropic") or (path + "/").startswith("/v1/messages/")


def error_response(error: ApiError, path: str, request_id: str) -> Response:
    write = native_body if is_native(path) else anthropic_body if is_anthropic(path) else compat_body
    return Response(dump(write(error, request_id)), error.status, error.headers, "application/json")


class Envelope:
    """A body has `client_timeout` seconds to come, and as many more as its size takes at a slow pace."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle, client_timeout: float) -> None:
        self._app = app
        self._lifecycle = lifecycle
        self._client_timeout = client_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name = str(uuid.uuid4())
        path = re.sub("/{2,}", "/", scope["path"]).rstrip("/") or "/"
        headers: dict[str, str] = {}
        scope = {**scope, "path": path, "raw_path": path.encode("utf-8", "replace")}
        scope |= {"qnext.request_id": name, "qnext.headers": headers}
        started = False

        async def send_named(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message).update({"X-Request-ID": name, **headers})
                if is_anthropic(path):
                    MutableHeaders(scope=message)["Request-ID"] = name  # as Anthropic's SDK knows it
            await send(message)

        try:
            await self._pass(scope, self._in_time(receive, headers), send_named)
        except (ClientGone, ClientDisconnect):
            pass  # nobody is there to be answered
        except Exception:
            _LOG.exception("request %s failed", name)
            if started:
                raise  # the connection is cut, which is all that can still be said
            await error_response(internal(), path, name)(scope, receive, send_named)

    async def _pass(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path in PROBES:
            await self._app(scope, receive, send)
        elif self._lifecycle.stopping:
            await error_response(stopping(), path, scope["qnext.request_id"])(scope, receive, send)
        elif self._lifecycle.full():
            scope["qnext.headers"]["Connection"] = "close"
            error = at_capacity("The server has as many connections as it can hold, please try again later.")
            await error_response(error, path, scope["qnext.request_id"])(scope, receive, send)
        else:
            with self._lifecycle.request():
                await self._app(scope, receive, send)

    def _in_time(self, receive: Receive, headers: dict[str, str]) -> Receive:
        """`receive`, which raises ApiError for a body that is too slow; `headers` are the answer's."""
        clock = asyncio.get_running_loop().time
        deadline, whole = clock() + self._client_timeout, False

        async def receive_in_time() -> Message:
            nonlocal deadline, whole
            if whole:
                return await receive()
            try:
                async with asyncio.timeout(deadline - clock()):
                    message = await receive()
            except TimeoutError:
                headers["Connection"] = "close"  # what else comes is not the head of a request
                raise slow_body() from None
            deadline += len(message.get("body", b"")) / _LEAST_RATE
            whole = not message.get("more_body", False)
            return message

        return receive_in_time
