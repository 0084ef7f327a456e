"""The gate: what every request passes before its endpoint sees it, and how its answer is sent.

Made by `app`, used by the routes. Invariants: key, then account and request rate, then size, then JSON, then
what the endpoint checks, then token rate and quota, then the engine; status 200 is sent only when the engine
has accepted, so that errors before the first token are plain HTTP errors; what is reserved for a request is
settled when it ends, however it ends.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any, NoReturn

from starlette.requests import Request
from starlette.responses import Response

from .admission import Admission
from .envelope import is_anthropic, is_native, request_id, response_headers
from .errors import REFUSALS, ApiError, bad_body, bad_key, internal, invalid
from .exchange import Answer, ChatEvent, ChatRequest, Reply, Usage
from .keys import Key, Keys
from .ledger import Status
from .service import Service
from .settings import Settings
from .sse import KEEP_ALIVE, ClientGone, EventStream, dump, while_connected

COMPAT_BASES = ("/compatible-mode/v1", "/v1")
NATIVE_BASE = "/api/v1"
ANTHROPIC_BASE = "/apps/anthropic"
Keep = Callable[[Answer], Awaitable[None]]
_LOG = logging.getLogger("qnext.server")


class Gate:
    """One server's models, keys and settings, and the way in and out that its endpoints share."""

    def __init__(self, service: Service, keys: Keys, admission: Admission, settings: Settings) -> None:
        self.service, self.settings = service, settings
        self._keys, self._admission = keys, admission

    async def admit(self, request: Request) -> Key:
        """Who asks for tokens to be computed, counted against the key's limits: before the body is read.
        Raises ApiError for a key that is none, an unpaid account, and one request too many."""
        key = self.key(request)
        response_headers(request).update(await self._admission.request(key))
        return key

    def key(self, request: Request) -> Key:
        """Who asks: `Authorization: Bearer` decides, `X-API-Key` and `X-DashScope-API-Key` are heard only
        without it. Raises ApiError when nobody holds such a key."""
        given = request.headers.get("authorization")
        if given is None:
            headers = request.headers
            secret = headers.get("x-api-key") or headers.get("x-dashscope-api-key", "")
        else:
            scheme, _, secret = given.partition(" ")
            secret = secret.strip() if scheme.lower() == "bearer" else ""
        key = self._keys.verify(secret) if secret else None
        if key is None:
            path = request.scope["path"]
            other = ANTHROPIC_BASE if is_anthropic(path) else COMPAT_BASES[0]
            base = NATIVE_BASE if is_native(path) else other
            raise bad_key(f"{request.scope['scheme']}://{request.headers.get('host', '')}{base}")
        return key

    async def body(self, request: Request) -> dict[str, Any]:
        """The JSON object that was sent. Raises ApiError for one that is too large or is none."""
        limit = self.settings.max_body_bytes
        too_large = ApiError("too_large", f"The request body is larger than {limit} bytes")
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length[:18]) > limit:
            raise too_large
        raw = bytearray()
        async for chunk in request.stream():
            raw += chunk
            if len(raw) > limit:
                raise too_large
        large = len(raw) > 2**16  # long enough to be felt by everyone on the event loop
        return await asyncio.to_thread(json_object, raw) if large else json_object(raw)

    async def respond(
        self, request: Request, key: Key, asked: ChatRequest, reply: Reply, keep: Keep | None = None
    ) -> Response:
        """Ask the engine; answer whole, or as a stream from the first event on. `keep` is given an answer
        that is complete, before its client learns that it is."""
        events = self.answer(key, asked, request_id(request), response_headers(request))
        if not asked.stream:
            answer = await while_connected(request.receive, gather(events))
            if keep is not None:
                await keep(answer)
            return json_response(reply.body(answer))
        first = asyncio.ensure_future(anext(events))
        silence = self.settings.keep_alive
        try:
            # An engine that is silent for long is busy, not in error: start the stream to keep it alive.
            await while_connected(request.receive, asyncio.wait({first}, timeout=silence))
        except BaseException:
            first.cancel()
            await asyncio.gather(first, return_exceptions=True)
            with suppress(ClientGone, StopAsyncIteration):
                await events.athrow(ClientGone())
            raise
        if first.done():
            first.result()
        return EventStream(_frames(first, events, reply, keep), silence)

    async def answer(
        self,
        key: Key,
        asked: ChatRequest,
        request_id: str,
        headers: dict[str, str] | None = None,
        *,
        batch: bool = False,
    ) -> AsyncGenerator[ChatEvent, None]:
        """The events of an answer that the key pays for; every endpoint that computes tokens gets them here.
        Raises ApiError, before the first event also when the limits refuse. `headers` are given what is left
        of the limits; the lines of a `batch` have their own price. Prompts are remembered for their own key
        alone: how soon an answer comes tells nothing of what others have asked.

        A stream that is closed early is settled up to the last event that was taken, or, if ClientGone is
        thrown in, up to the one before; an answer that is not streamed is told whole or not at all.
        """
        ticket = self._admission.ticket(key, request_id, headers, batch=batch)
        told, before = Usage(), Usage()
        status: Status = "cancelled"
        events = self.service.answer(replace(asked, salt=str(key.id)), ticket.take)
        try:
            async with aclosing(events):
                async for event in events:
                    before, told = told, event.usage
                    yield event
            status = "ok"
        except ClientGone:
            told = before
            raise
        except ApiError as error:
            status = "refused" if error.kind in REFUSALS and not told.total else "failed"
            raise
        except Exception:
            status = "failed"
            raise
        finally:
            ticket.settle(told if asked.stream or status == "ok" else Usage(), status)


def model_name(body: dict[str, Any], missing: str) -> str:
    """The model that a body names. Raises ApiError with the words `missing`."""
    name = body.get("model")
    if not isinstance(name, str) or not name:
        raise invalid(missing, "model")
    return name


def json_response(value: Any) -> Response:
    return Response(dump(value), media_type="application/json")


async def gather(events: AsyncGenerator[ChatEvent, None]) -> Answer:
    """All events of an answer that is not streamed."""
    answer = Answer()
    async with aclosing(events):
        async for event in events:
            answer.add(event)
    return answer


def json_object(raw: bytes | bytearray) -> dict[str, Any]:
    """The JSON object of a body. A lone surrogate, which can be spelled but is no text, becomes "?". Raises
    ApiError when it is none."""
    try:
        body = json.loads(raw.decode("utf-8-sig"), parse_constant=_no_constant)
        if b"\\u" in raw:
            body = json.loads(dump(body))
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise bad_body()
    return body


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


async def _frames(
    first: asyncio.Future[ChatEvent],
    events: AsyncGenerator[ChatEvent, None],
    reply: Reply,
    keep: Keep | None,
) -> AsyncGenerator[bytes, None]:
    """The bytes of a stream; a failure is told in its last frame, never by silence."""
    answer = Answer()
    try:
        if not first.done():
            yield KEEP_ALIVE
        event = await first
        answer.add(event)
        yield reply.frames(event, answer)
        async for event in events:
            answer.add(event)
            yield reply.frames(event, answer)
        if keep is not None:
            await keep(answer)
        yield reply.end(answer)
    except ApiError as error:
        yield reply.failure(error, answer)
    except Exception:
        _LOG.exception("a stream failed")
        yield reply.failure(internal(), answer)
    finally:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        if not answer.choices:  # its client left before it was told the first event, if there is one
            with suppress(ClientGone, StopAsyncIteration):
                await events.athrow(ClientGone())
        await events.aclose()
