"""The HTTP application: routes, and the order in which a request is checked.

Made by `cli` and tests with `create_app`. Invariant: key, then size, then JSON, then model, then parameters,
then length, then the engine; status 200 is sent only when the engine has accepted, so that errors before the
first token are plain HTTP errors.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, NoReturn

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from . import dashscope, openai, openai_completions
from .envelope import Envelope, error_response, is_native, request_id
from .errors import ApiError, bad_key, internal, invalid, no_model
from .exchange import Answer, ChatEvent, ChatRequest, Reply
from .keys import Key, Keys
from .metrics import render
from .service import Service
from .settings import Settings
from .sse import KEEP_ALIVE, EventStream, dump, while_connected

COMPAT_BASES = ("/compatible-mode/v1", "/v1")
NATIVE_BASE = "/api/v1"
GENERATION = "/services/aigc/text-generation/generation"
_LOG = logging.getLogger("qnext.server")
_Endpoint = Callable[[Request], Awaitable[Response]]


def create_app(service: Service, keys: Keys, settings: Settings) -> FastAPI:
    """The ASGI application that serves the models of `service` to the holders of `keys`."""
    app = FastAPI(title="qnext", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.add_middleware(Envelope)
    app.add_exception_handler(ApiError, _refuse)
    app.add_exception_handler(HTTPException, _refuse)
    routes = _Routes(service, keys, settings)

    def add(method: str, path: str, endpoint: _Endpoint) -> None:
        app.add_route(path, endpoint, methods=[method], include_in_schema=False)

    add("GET", "/healthz", routes.health)
    add("GET", "/metrics", routes.metrics)
    add("POST", NATIVE_BASE + GENERATION, routes.generation)
    add("POST", NATIVE_BASE + "/tokenizer", routes.tokenizer)
    add("GET", NATIVE_BASE + "/models", routes.native_models)
    for base in COMPAT_BASES:
        add("POST", base + "/chat/completions", routes.chat)
        add("POST", base + "/completions", routes.completions)
        add("GET", base + "/models", routes.compat_models)
        add("GET", base + "/models/{name:path}", routes.compat_model)
        add("POST", base + GENERATION, routes.generation)  # a native SDK that was given a compatible base
    return app


async def _refuse(request: Request, error: Exception) -> Response:
    """ApiErrors of the routes, and the router's own for unknown URLs and methods."""
    path = request.scope["path"]
    if isinstance(error, HTTPException):
        wrong_url = f"Invalid URL ({request.method} {path})"
        known = {
            404: ApiError("url", "url error, please check url！", compat=wrong_url),
            405: ApiError("method", f"{request.method} is not allowed here"),
        }
        response = error_response(known.get(error.status_code, internal()), path, request_id(request))
        response.headers.update(error.headers or {})
        return response
    assert isinstance(error, ApiError)
    return error_response(error, path, request_id(request))


class _Routes:
    def __init__(self, service: Service, keys: Keys, settings: Settings) -> None:
        self._service = service
        self._keys = keys
        self._settings = settings

    async def health(self, request: Request) -> Response:
        return _json({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        return Response(render(self._service.stats()), media_type="text/plain; version=0.0.4")

    async def generation(self, request: Request) -> Response:
        key = self._check_key(request)
        _check_headers(request)
        body = await self._body(request)
        name = _model(body, dashscope.NO_MODEL)
        asked, reply = dashscope.parse(
            body, self._service.rules(name), stream=_wants_stream(request), request_id=request_id(request)
        )
        return await self._respond(request, key, asked, reply)

    async def chat(self, request: Request) -> Response:
        return await self._compat(request, openai.parse)

    async def completions(self, request: Request) -> Response:
        return await self._compat(request, openai_completions.parse)

    async def _compat(self, request: Request, parse: Callable[..., tuple[ChatRequest, Reply]]) -> Response:
        key = self._check_key(request)
        body = await self._body(request)
        rules = self._service.rules(_model(body, openai.NO_MODEL))
        asked, reply = parse(body, rules, request_id=request_id(request), created=int(time.time()))
        return await self._respond(request, key, asked, reply)

    async def tokenizer(self, request: Request) -> Response:
        self._check_key(request)
        body = await self._body(request)
        name = _model(body, dashscope.NO_MODEL)
        tokens = await self._service.tokenize(
            name, dashscope.parse_tokenizer(body, self._service.rules(name))
        )
        return _json(dashscope.tokenized(tokens, request_id(request)))

    async def native_models(self, request: Request) -> Response:
        self._check_key(request)
        names = [(name, served.name) for name, served in self._service.names()]
        return _json(dashscope.models(names, request.query_params, request_id(request)))

    async def compat_models(self, request: Request) -> Response:
        self._check_key(request)
        return _json(openai.model_list(self._entries()))

    async def compat_model(self, request: Request) -> Response:
        self._check_key(request)
        name = request.path_params["name"]
        for entry in self._entries():
            if entry["id"] == name:
                return _json(entry)
        raise no_model(name)

    def _entries(self) -> list[dict[str, Any]]:
        names = self._service.names()
        return [openai.model_entry(name, served.name, served.created) for name, served in names]

    def _check_key(self, request: Request) -> Key:
        """`Authorization: Bearer` decides; `X-DashScope-API-Key` is heard only without it."""
        given = request.headers.get("authorization")
        if given is None:
            secret = request.headers.get("x-dashscope-api-key", "")
        else:
            scheme, _, secret = given.partition(" ")
            secret = secret.strip() if scheme.lower() == "bearer" else ""
        key = self._keys.verify(secret) if secret else None
        if key is None:
            base = NATIVE_BASE if is_native(request.scope["path"]) else COMPAT_BASES[0]
            raise bad_key(f"{request.scope['scheme']}://{request.headers.get('host', '')}{base}")
        return key

    async def _body(self, request: Request) -> dict[str, Any]:
        limit = self._settings.max_body_bytes
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
        return await asyncio.to_thread(_load, raw) if large else _load(raw)

    async def _respond(self, request: Request, key: Key, asked: ChatRequest, reply: Reply) -> Response:
        """Ask the engine; answer whole, or as a stream from the first event on. Prompts are remembered for
        their own key alone: how soon an answer comes tells nothing of what others have asked."""
        events = self._service.answer(replace(asked, salt=str(key.id)))
        if not asked.stream:
            answer = await while_connected(request.receive, _gather(events))
            return _json(reply.body(answer))
        first = asyncio.ensure_future(anext(events))
        silence = self._settings.keep_alive
        try:
            # An engine that is silent for long is busy, not in error: start the stream to keep it alive.
            await while_connected(request.receive, asyncio.wait({first}, timeout=silence))
        except BaseException:
            first.cancel()
            raise
        if first.done():
            first.result()
        return EventStream(_frames(first, events, reply), silence)


def _load(raw: bytearray) -> dict[str, Any]:
    """The JSON object of a body. A lone surrogate, which can be spelled but is no text, becomes "?"."""
    try:
        body = json.loads(raw.decode("utf-8-sig"), parse_constant=_no_constant)
        if b"\\u" in raw:
            body = json.loads(dump(body))
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise ApiError("parameter", dashscope.BAD_BODY)
    return body


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


async def _gather(events: AsyncGenerator[ChatEvent, None]) -> Answer:
    answer = Answer()
    async with aclosing(events):
        async for event in events:
            answer.add(event)
    return answer


async def _frames(
    first: asyncio.Future[ChatEvent], events: AsyncGenerator[ChatEvent, None], reply: Reply
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
        yield reply.end(answer)
    except ApiError as error:
        yield reply.failure(error, answer)
    except Exception:
        _LOG.exception("a stream failed")
        yield reply.failure(internal(), answer)
    finally:
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await events.aclose()


def _json(value: Any) -> Response:
    return Response(dump(value), media_type="application/json")


def _model(body: dict[str, Any], missing: str) -> str:
    name = body.get("model")
    if not isinstance(name, str) or not name:
        raise invalid(missing, "model")
    return name


def _check_headers(request: Request) -> None:
    if "x-dashscope-encryptionkey" in request.headers:
        raise invalid("encrypted requests are not supported: leave X-DashScope-EncryptionKey out")
    if request.headers.get("x-dashscope-async", "").lower() == "enable":
        raise invalid("text generation is synchronous only: leave X-DashScope-Async out")


def _wants_stream(request: Request) -> bool:
    """`X-DashScope-SSE: enable`, or an `Accept` of event streams."""
    switch = request.headers.get("x-dashscope-sse", "").lower() == "enable"
    return switch or "text/event-stream" in request.headers.get("accept", "").lower()
