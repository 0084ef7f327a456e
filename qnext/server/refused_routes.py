"""Well-known endpoints that a text model cannot serve: each is refused in its dialect, with what would help.

Mounted by `app` under the compatible bases and the native one. Invariant: the key comes first here too, and
no body is read.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .errors import ApiError
from .gate import COMPAT_BASES, NATIVE_BASE, Gate

_EMBEDDINGS = (
    "Embeddings are not served: Qwen3-Next is a text generation model. Use an embedding model's server"
)
_IMAGES = "Images are not served: Qwen3-Next reads and writes text only. Use an image model's server"
_AUDIO = "Audio is not served: Qwen3-Next reads and writes text only. Use a speech model's server"
_MEDIA = "Only text is served: send texts to /services/aigc/text-generation/generation"
_RANKS = "Reranking is not served: Qwen3-Next is a text generation model. Use a reranking model's server"
_CHECKS = "Moderations are not served: this server judges no content. Ask a chat model, or another server"
COMPAT = {
    "/embeddings": _EMBEDDINGS,
    "/images/generations": _IMAGES,
    "/images/edits": _IMAGES,
    "/images/variations": _IMAGES,
    "/audio/speech": _AUDIO,
    "/audio/transcriptions": _AUDIO,
    "/audio/translations": _AUDIO,
    "/moderations": _CHECKS,
    "/rerank": _RANKS,
    "/reranks": _RANKS,
}
NATIVE = {
    "/services/embeddings/text-embedding/text-embedding": _EMBEDDINGS,
    "/services/embeddings/multimodal-embedding/multimodal-embedding": _EMBEDDINGS,
    "/services/rerank/text-rerank/text-rerank": _RANKS,
    "/services/aigc/multimodal-generation/generation": _MEDIA,
    "/services/aigc/text2image/image-synthesis": _IMAGES,
    "/services/aigc/image2image/image-synthesis": _IMAGES,
    "/services/aigc/video-generation/video-synthesis": _MEDIA,
}


class RefusedRoutes:
    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._words = {base + path: words for base in COMPAT_BASES for path, words in COMPAT.items()}
        self._words |= {NATIVE_BASE + path: words for path, words in NATIVE.items()}

    def routes(self) -> list[Route]:
        return [Route(path, self.refuse, methods=["POST"]) for path in self._words]

    async def refuse(self, request: Request) -> Response:
        self._gate.key(request)
        raise ApiError("unsupported", self._words[request.scope["path"]])
