"""The OpenAI-compatible endpoints: chat completions, completions, models.

Mounted by `app` under each of the compatible bases.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from . import openai, openai_completions
from .envelope import request_id
from .exchange import ChatRequest, Reply
from .gate import COMPAT_BASES, Gate, model_name
from .model_routes import ModelRoutes


class CompatRoutes:
    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._models = ModelRoutes(gate, openai.model_entry, openai.model_list)

    def routes(self) -> list[Route]:
        return [
            route
            for base in COMPAT_BASES
            for route in (
                Route(base + "/chat/completions", self.chat, methods=["POST"]),
                Route(base + "/completions", self.completions, methods=["POST"]),
                *self._models.routes(base),
            )
        ]

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, openai.parse)

    async def completions(self, request: Request) -> Response:
        return await self._answer(request, openai_completions.parse)

    async def _answer(self, request: Request, parse: Callable[..., tuple[ChatRequest, Reply]]) -> Response:
        key = await self._gate.admit(request)
        body = await self._gate.body(request)
        rules = self._gate.service.rules(model_name(body, openai.NO_MODEL))
        asked, reply = parse(body, rules, request_id=request_id(request), created=int(time.time()))
        return await self._gate.respond(request, key, asked, reply)
