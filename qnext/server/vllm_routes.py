"""vLLM's tokenizer endpoints, as evaluation harnesses call them: /tokenize, /detokenize, /tokenizer_info.

Mounted by `app` at the root, where vLLM has them, and under the compatible bases. Invariant: a request that
names no model, as harnesses send it, is answered by the first model that knows conversations.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from qnext.text.tokenizer import Tokenizer

from . import openai, vllm
from .errors import invalid
from .gate import COMPAT_BASES, Gate, json_response, model_name
from .lengths import COUNTED, check_excess


class VllmRoutes:
    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def routes(self) -> list[Route]:
        return [
            route
            for base in ("", *COMPAT_BASES)
            for route in (
                Route(base + "/tokenize", self.tokenize, methods=["POST"]),
                Route(base + "/detokenize", self.detokenize, methods=["POST"]),
                Route(base + "/tokenizer_info", self.info, methods=["GET"]),
            )
        ]

    async def tokenize(self, request: Request) -> Response:
        self._gate.key(request)
        body = await self._gate.body(request)
        name = self._model(body)
        served = self._gate.service.find(name)
        asked = vllm.parse_tokenize(body, self._gate.service.rules(name))
        tokenizer = served.chat.tokenizer
        if isinstance(asked.prompt, str):
            ids: Any = await asyncio.to_thread(_trusted, tokenizer, asked.prompt, served.context_length)
        else:
            ids = await self._gate.service.encode(name, asked.prompt, asked.tools, open_turn=asked.open_turn)
        longest = served.context_length
        return json_response(await asyncio.to_thread(vllm.tokenized, ids, tokenizer, asked.texts, longest))

    async def detokenize(self, request: Request) -> Response:
        self._gate.key(request)
        body = await self._gate.body(request)
        name = self._model(body)
        ids = vllm.parse_detokenize(body, self._gate.service.rules(name))
        tokenizer = self._gate.service.find(name).chat.tokenizer
        text = await asyncio.to_thread(tokenizer.decode, ids, skip_control=False)
        return json_response({"prompt": text})

    async def info(self, request: Request) -> Response:
        self._gate.key(request)
        served = self._gate.service.find(self._model(request.query_params))
        return json_response(vllm.tokenizer_info(served.chat.tokenizer, served.context_length))

    def _model(self, given: Any) -> str:
        """The model that a body or a query names, or the one that answers where none is named."""
        if given.get("model") is not None:
            return model_name({"model": given["model"]}, openai.NO_MODEL)
        names = self._gate.service.names()
        return next((name for name, served in names if served.chat.has_template), names[0][0])


def _trusted(tokenizer: Tokenizer, text: str, context: int) -> list[int]:
    """The ids of a text that may hold control tokens. Raises ApiError when it is far longer than any
    context."""
    try:
        check_excess(text, (), tokenizer, max(context, COUNTED))
        return tokenizer.encode_trusted(text)
    except ValueError as error:
        raise invalid(str(error), "prompt") from None
