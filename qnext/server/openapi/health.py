"""The operations for whoever runs or explores the server, without a key, and those that are refused in words.

Read by `document`. Invariant: as `app`, `docs_routes` and `refused_routes` serve them.
"""

from __future__ import annotations

from ..gate import NATIVE_BASE
from ..refused_routes import COMPAT, NATIVE
from .operation import COMPAT_PREFIXES, Operation
from .schema import JSON_OBJECT, answer, const, text

TAG, REFUSED_TAG = "Operation", "Refused"
OPERATIONS = [
    Operation(
        "getHealth",
        "get",
        "/healthz",
        TAG,
        "Whether the server lives",
        answer("", {"status": const("ok")}),
        key=False,
    ),
    Operation(
        "getReadiness",
        "get",
        "/readyz",
        TAG,
        "Whether the server takes requests: not while it stops",
        answer("", {"status": const("ready")}),
        key=False,
        others={503: answer("", {"status": const("stopping")})},
    ),
    Operation(
        "getMetrics",
        "get",
        "/metrics",
        TAG,
        "What the engines have done and hold, for Prometheus",
        text(),
        media="text/plain",
        key=False,
    ),
    Operation(
        "getDocument", "get", "/openapi.json", TAG, "This document, OpenAPI 3.1", JSON_OBJECT, key=False
    ),
    Operation(
        "getNewDocument",
        "get",
        "/openapi-3.2.json",
        TAG,
        "This document, OpenAPI 3.2",
        JSON_OBJECT,
        "Streams are described event by event.",
        key=False,
    ),
    Operation(
        "getPage",
        "get",
        "/docs",
        TAG,
        "The page that shows this document",
        text(),
        media="text/html",
        key=False,
    ),
    Operation(
        "getPageFile",
        "get",
        "/docs/{file}",
        TAG,
        "A file of that page",
        text(format="binary"),
        media="*/*",
        key=False,
    ),
]
_FAMILIES = ((NATIVE_BASE, NATIVE, ("",)), ("/v1", COMPAT, COMPAT_PREFIXES))


def _name(path: str) -> str:
    words = path.replace("-", "/").strip("/").split("/")
    return "refuse" + "".join(word.title() for word in words)


OPERATIONS += [
    Operation(_name(path), "post", base + path, REFUSED_TAG, words, None, "", prefixes, errors=(400,))
    for base, table, prefixes in _FAMILIES
    for path, words in table.items()
]
