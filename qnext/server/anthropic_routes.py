"""Anthropic's endpoints: messages, the count of their tokens, the models.

Mounted by `app` under `/apps/anthropic/v1`, and where Anthropic's SDK asks a server without such a base.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from . import anthropic, anthropic_reply
from .envelope import request_id
from .gate import ANTHROPIC_BASE, Gate, json_response, model_name
from .model_routes import ModelRoutes


class AnthropicRoutes:
    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._models = ModelRoutes(gate, anthropic_reply.model_entry, anthropic_reply.model_list)

    def routes(self) -> list[Route]:
        return [
            *(
                route
                for base in (ANTHROPIC_BASE, "")
                for route in (
                    Route(base + "/v1/messages", self.messages, methods=["POST"]),
                    Route(base + "/v1/messages/count_tokens", self.count, methods=["POST"]),
                )
            ),
            *self._models.routes(ANTHROPIC_BASE + "/v1"),
        ]

    async def messages(self, request: Request) -> Response:
        key = await self._gate.admit(request)
        body = await self._gate.body(request)
        rules = self._gate.service.rules(model_name(body, anthropic.NO_MODEL))
        asked, reply = anthropic.parse(body, rules, request_id=request_id(request))
        return await self._gate.respond(request, key, asked, reply)

    async def count(self, request: Request) -> Response:
        self._gate.key(request)
        body = await self._gate.body(request)
        name = model_name(body, anthropic.NO_MODEL)
        prompt = anthropic.read_prompt(body, self._gate.service.rules(name))
        ids = await self._gate.service.encode(name, prompt, anthropic.offered_tools(body))
        return json_response({"input_tokens": len(ids)})
