"""The models as OpenAI and Anthropic list them: all of them, and one by its name.

Mounted by `compat_routes` and `anthropic_routes`, each with its own words for an entry and for a list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .gate import Gate, json_response

Entry = dict[str, Any]


@dataclass(frozen=True)
class ModelRoutes:
    """`entry` is given the name asked for, the model that answers to it and its time in seconds since
    1970."""

    gate: Gate
    entry: Callable[[str, str, int], Entry]
    listed: Callable[[Sequence[Entry]], Entry]

    def routes(self, base: str) -> list[Route]:
        return [
            Route(base + "/models", self.models, methods=["GET"]),
            Route(base + "/models/{name:path}", self.model, methods=["GET"]),
        ]

    async def models(self, request: Request) -> Response:
        self.gate.key(request)
        names = self.gate.service.names()
        return json_response(self.listed([self.entry(name, each.name, each.created) for name, each in names]))

    async def model(self, request: Request) -> Response:
        self.gate.key(request)
        name = request.path_params["name"]
        found = self.gate.service.find(name)
        return json_response(self.entry(name, found.name, found.created))
