"""The Responses endpoints: responses, what was stored of them, and the count of their tokens.

Mounted by `app` under the compatible bases and under the path that the hosted service had first. Invariant: a
response that is stored can be found before its client has read that it is complete.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from . import openai, responses
from .envelope import request_id
from .errors import ApiError, invalid, missing
from .exchange import Answer
from .gate import COMPAT_BASES, Gate, json_response, model_name
from .keys import Key
from .response_items import Item
from .response_store import StoredResponse, StoredResponses
from .validation import span

FIRST_BASE = "/api/v2/apps/protocols/compatible-mode/v1"


class ResponseRoutes:
    def __init__(self, gate: Gate, stored: StoredResponses) -> None:
        self._gate, self._stored = gate, stored

    def routes(self) -> list[Route]:
        return [
            route
            for base in (*COMPAT_BASES, FIRST_BASE)
            for route in (
                Route(base + "/responses", self.create, methods=["POST"]),
                Route(base + "/responses/input_tokens", self.count, methods=["POST"]),
                Route(base + "/responses/{name}", self.retrieve, methods=["GET"]),
                Route(base + "/responses/{name}", self.delete, methods=["DELETE"]),
                Route(base + "/responses/{name}/cancel", self.cancel, methods=["POST"]),
                Route(base + "/responses/{name}/input_items", self.items, methods=["GET"]),
            )
        ]

    async def create(self, request: Request) -> Response:
        key = await self._gate.admit(request)
        body = await self._gate.body(request)
        rules = self._gate.service.rules(model_name(body, openai.NO_MODEL))
        before, moment = await self._before(key, body), int(time.time())
        asked, reply, items = responses.parse(
            body, rules, request_id=request_id(request), created=moment, before=before
        )

        async def keep(answer: Answer) -> None:
            response = StoredResponse(reply.body(answer), items)
            await asyncio.to_thread(self._stored.save, key.id, response)

        return await self._gate.respond(request, key, asked, reply, keep if responses.keeps(body) else None)

    async def count(self, request: Request) -> Response:
        key = self._gate.key(request)
        body = await self._gate.body(request)
        name = model_name(body, openai.NO_MODEL)
        rules, before = self._gate.service.rules(name), await self._before(key, body)
        prompt, tools = responses.read_prompt(body, rules, request_id(request), before)
        ids = await self._gate.service.encode(name, prompt, tools)
        return json_response({"object": "response.input_tokens", "input_tokens": len(ids)})

    async def retrieve(self, request: Request) -> Response:
        if request.query_params.get("stream") == "true":
            raise invalid("a stored response is not streamed: leave stream out", "stream")
        return json_response((await self._find(request)).body)

    async def delete(self, request: Request) -> Response:
        key, name = self._gate.key(request), request.path_params["name"]
        if not await asyncio.to_thread(self._stored.delete, key.id, name):
            raise missing("response", name)
        return json_response({"id": name, "object": "response", "deleted": True})

    async def cancel(self, request: Request) -> Response:
        await self._find(request)
        raise ApiError("unsupported", "Only background responses can be cancelled, and none are served here")

    async def items(self, request: Request) -> Response:
        return json_response(_page((await self._find(request)).items, request))

    async def _find(self, request: Request) -> StoredResponse:
        key, name = self._gate.key(request), request.path_params["name"]
        found = await asyncio.to_thread(self._stored.find, key.id, name)
        if found is None:
            raise missing("response", name)
        return found

    async def _before(self, key: Key, body: dict[str, Any]) -> list[Item]:
        """The conversation that a body goes on with."""
        name = responses.previous(body)
        if name is None:
            return []
        found = await asyncio.to_thread(self._stored.find, key.id, name)
        if found is None:
            words = "it was never stored, was deleted, or is too old"
            raise invalid(f"Previous response with id '{name}' not found: {words}", "previous_response_id")
        return found.conversation


def _page(items: Sequence[Item], request: Request) -> dict[str, Any]:
    """A page of items, the newest first unless `order` is "asc"; `after` is the last id of the page
    before."""
    query = request.query_params
    order, after = query.get("order", "desc"), query.get("after")
    if order not in ("asc", "desc"):
        raise invalid('order must be "asc" or "desc"', "order")
    text = query.get("limit", "20")
    limit = span({"limit": int(text[:9]) if text.isascii() and text.isdigit() else 0}, "limit", 1, 100) or 20
    ordered = list(items) if order == "asc" else list(reversed(items))
    if after is not None:
        names = [item["id"] for item in ordered]
        if after not in names:
            raise invalid("after must be the id of an item of this response", "after")
        ordered = ordered[names.index(after) + 1 :]
    page = ordered[:limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": len(ordered) > limit,
    }
