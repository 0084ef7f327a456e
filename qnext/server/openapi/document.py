"""The OpenAPI document, made of the tables beside this file, in version 3.1 or 3.2.

Called by `docs_routes`. Invariant: both versions say the same; they differ only in how streams and examples
are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, get_args

from qnext.version import VERSION

from ..errors import ApiError, Kind, anthropic_body, compat_body, native_body
from ..settings import Settings
from . import compat, files, health, jobs, messages, native, parameters, responses, tokenizer
from .examples import Examples, load
from .operation import JSON, Operation, Version
from .schema import Schema, Setting, answer, const, count, nullable, ref, text

_NUMBERS = {"3.1": "3.1.1", "3.2": "3.2.0"}
_ABOUT = """
Qwen3-Next on your own machine, in the protocols of DashScope (native), OpenAI and Anthropic.

**Keys.** `Authorization: Bearer sk-…` decides; `X-API-Key` and `X-DashScope-API-Key` are heard only
without it.

**Answers** carry `X-Request-ID`. Errors have the shape of the family of their path. Where a request may
come again later, `Retry-After` says in how many seconds.

**Paths.** Some are served at several bases: those are the servers of the path.
""".strip()
_TAGS = {
    native.TAG: "The native protocol of DashScope.",
    files.NATIVE_TAG: "Files, and batches as tasks, in the native protocol.",
    compat.TAG: "Chat completions, completions and models as OpenAI has them.",
    responses.TAG: "Responses, stored or not.",
    files.TAG: "Files, and batches of requests that are answered later.",
    messages.TAG: "Messages as Anthropic has them.",
    tokenizer.TAG: "Tokens, as vLLM tells them.",
    health.TAG: "For whoever runs the server; without a key.",
    health.REFUSED_TAG: "What a text model cannot serve, refused with what would help.",
}
OPERATIONS: list[Operation] = [
    *native.OPERATIONS,
    *compat.OPERATIONS,
    *responses.OPERATIONS,
    *messages.OPERATIONS,
    *files.OPERATIONS,
    *jobs.OPERATIONS,
    *tokenizer.OPERATIONS,
    *health.OPERATIONS,
]
_NUMBER = {"error_code": count("10402 for an account without balance.")}
ERRORS: dict[str, Schema] = {
    "NativeError": answer("", {"code": text(), "message": text(), "request_id": text()}, _NUMBER),
    "CompatError": answer(
        "",
        {
            "error": answer(
                "",
                {
                    "message": text(),
                    "type": text(),
                    "param": nullable(text("The parameter at fault.")),
                    "code": text(),
                },
                _NUMBER,
            ),
            "request_id": text(),
        },
    ),
    "AnthropicError": answer(
        "",
        {
            "type": const("error"),
            "error": answer("", {"type": text(), "message": text()}, _NUMBER),
            "request_id": text(),
        },
    ),
}
_SCHEMAS: dict[str, Schema] = {
    **native.SCHEMAS,
    **compat.SCHEMAS,
    **responses.SCHEMAS,
    **messages.SCHEMAS,
    **files.SCHEMAS,
    **jobs.SCHEMAS,
    **parameters.SCHEMAS,
    **ERRORS,
}
_HEADERS = {
    "X-Request-ID": text("The request's id; native answers have it in the body as well."),
    "Request-ID": text("The same, as Anthropic's SDK knows it."),
    "Retry-After": count("Seconds."),
    "x-should-retry": text("`false`: the same request would be refused again.", "false"),
    "X-RateLimit-Limit-Requests": count("Requests that the key may make a minute, if that is limited."),
    "X-RateLimit-Remaining-Requests": count("How many of them are left."),
    "X-RateLimit-Limit-Tokens": count("Tokens that the key may use a minute, if that is limited."),
    "X-RateLimit-Remaining-Tokens": count("How many of them are left."),
}
_SECURITY = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "`qnext keys` makes keys."},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "dashscopeKey": {"type": "apiKey", "in": "header", "name": "X-DashScope-API-Key"},
}


def document(version: Version, settings: Settings) -> dict[str, Any]:
    """The whole document for a server of these settings."""
    examples = load()
    tags = [{"name": name, "description": words} for name, words in _TAGS.items()]
    told = {
        "openapi": _NUMBERS[version],
        "info": {
            "title": "qnext",
            "version": VERSION,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{name: []} for name in _SECURITY],
        "tags": tags,
        "paths": _paths(version, examples),
        "components": {
            "schemas": _SCHEMAS,
            "responses": _responses(),
            "headers": {name: {"schema": schema} for name, schema in _HEADERS.items()},
            "securitySchemes": _SECURITY,
        },
    }
    settled: dict[str, Any] = _settled(told, settings)
    return settled


def _paths(version: Version, examples: Examples) -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for operation in OPERATIONS:
        item = paths.setdefault(operation.path, {})
        if operation.prefixes != ("",):
            item["servers"] = [{"url": prefix or "/"} for prefix in operation.prefixes]
        item[operation.method] = operation.written(version, examples.get(operation.id, []))
    return paths


def _responses() -> dict[str, Any]:
    """What each family says to each status, with its codes."""
    told: dict[str, Any] = {}
    for kind in get_args(Kind):
        error = ApiError(kind, "")
        codes = {
            "Native": native_body(error, "")["code"],
            "Compat": compat_body(error, "")["error"]["code"],
            "Anthropic": anthropic_body(error, "")["error"]["type"],
        }
        for family, code in codes.items():
            name = f"{family}{error.status}"
            response = told.setdefault(name, _response(family, error.status))
            if f"`{code}`" not in response["description"]:
                response["description"] += f" `{code}`"
    return told


def _response(family: str, status: int) -> dict[str, Any]:
    names = ["X-Request-ID", *(["Request-ID"] if family == "Anthropic" else [])]
    if status in (429, 503):
        names += ["Retry-After", "x-should-retry"]
    return {
        "description": f"{HTTPStatus(status).phrase}:",
        "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names},
        "content": {JSON: {"schema": ref(f"{family}Error")}},
    }


def _settled(value: Any, settings: Settings) -> Any:
    """The same with the settings' values where they belong, and without sharing."""
    if isinstance(value, Setting):
        return sum(getattr(settings, name) for name in value.names)
    if isinstance(value, Mapping):
        return {key: _settled(each, settings) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_settled(each, settings) for each in value]
    return value
