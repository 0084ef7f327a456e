"""Anthropic's endpoints: messages, the count of their tokens, the models.

Mounted by `app` under `/apps/anthropic/v1`, and where Anthropic's SDK asks a server without such a base.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from . import anthropic, anthropic_reply
from .envelope import request_id
from .errors import no_model
from .gate import ANTHROPIC_BASE, Gate, json_response, model_name


class AnthropicRoutes:
    def __init__(self, gate: Gate) -> None:
        self._gate = gate

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
            Route(ANTHROPIC_BASE + "/v1/models", self.models, methods=["GET"]),
            Route(ANTHROPIC_BASE + "/v1/models/{name:path}", self.model, methods=["GET"]),
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

    async def models(self, request: Request) -> Response:
        self._gate.key(request)
        return json_response(anthropic_reply.model_list(self._entries()))

    async def model(self, request: Request) -> Response:
        self._gate.key(request)
        name = request.path_params["name"]
        for entry in self._entries():
            if entry["id"] == name:
                return json_response(entry)
        raise no_model(name)

    def _entries(self) -> list[dict[str, Any]]:
        names = self._gate.service.names()
        return [anthropic_reply.model_entry(name, served.name, served.created) for name, served in names]
