"""The native DashScope endpoints: generation, the tokenizer, the models.

Mounted by `app` under `/api/v1`, and generation also where a native SDK was given a compatible base.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from . import dashscope
from .envelope import request_id
from .errors import invalid
from .gate import COMPAT_BASES, NATIVE_BASE, Gate, json_response, model_name

GENERATION = "/services/aigc/text-generation/generation"


class NativeRoutes:
    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def routes(self) -> list[Route]:
        return [
            *(
                Route(base + GENERATION, self.generation, methods=["POST"])
                for base in (NATIVE_BASE, *COMPAT_BASES)
            ),
            Route(NATIVE_BASE + "/tokenizer", self.tokenizer, methods=["POST"]),
            Route(NATIVE_BASE + "/models", self.models, methods=["GET"]),
            Route(NATIVE_BASE + "/models/{name:path}", self.model, methods=["GET"]),
        ]

    async def generation(self, request: Request) -> Response:
        key = await self._gate.admit(request)
        _check_headers(request)
        body = await self._gate.body(request)
        name = model_name(body, dashscope.NO_MODEL)
        asked, reply = dashscope.parse(
            body,
            self._gate.service.rules(name),
            stream=_wants_stream(request),
            request_id=request_id(request),
        )
        return await self._gate.respond(request, key, asked, reply)

    async def tokenizer(self, request: Request) -> Response:
        self._gate.key(request)
        body = await self._gate.body(request)
        name = model_name(body, dashscope.NO_MODEL)
        prompt = dashscope.parse_tokenizer(body, self._gate.service.rules(name))
        tokens = await self._gate.service.tokenize(name, prompt)
        return json_response(dashscope.tokenized(tokens, request_id(request)))

    async def models(self, request: Request) -> Response:
        self._gate.key(request)
        names = [(name, served.name) for name, served in self._gate.service.names()]
        return json_response(dashscope.models(names, request.query_params, request_id(request)))

    async def model(self, request: Request) -> Response:
        """One model by name, which is how the first generation of the SDK asks."""
        self._gate.key(request)
        name = request.path_params["name"]
        entry = dashscope.model_entry(name, self._gate.service.find(name).name)
        return json_response({"output": entry, "request_id": request_id(request)})


def _check_headers(request: Request) -> None:
    if "x-dashscope-encryptionkey" in request.headers:
        raise invalid("encrypted requests are not supported: leave X-DashScope-EncryptionKey out")
    if request.headers.get("x-dashscope-async", "").lower() == "enable":
        raise invalid("text generation is synchronous only: leave X-DashScope-Async out")


def _wants_stream(request: Request) -> bool:
    """`X-DashScope-SSE: enable`, or an `Accept` of event streams."""
    switch = request.headers.get("x-dashscope-sse", "").lower() == "enable"
    return switch or "text/event-stream" in request.headers.get("accept", "").lower()
