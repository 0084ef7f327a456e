"""An operation of the OpenAPI document: one method of one path, in the tables' words and in the standard's.

Made by the tables beside it, written by `document`. Invariant: what holds for all operations of a kind (keys,
errors, headers) is told here, so that no table can forget it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..envelope import is_anthropic, is_native
from .schema import Schema, Schemas, const, ref, text

Version = Literal["3.1", "3.2"]
JSON, EVENTS = "application/json", "text/event-stream"
COMPAT_PREFIXES = ("", "/compatible-mode")
_PROBLEMS = {"body": (400, 413), "key": (401,), "object": (404,), "computes": (403, 404, 408, 429, 500, 503)}


@dataclass(frozen=True)
class Operation:
    """It is served at each of `prefixes` + `path`. `body` and `answer` are schemas of JSON unless `form` or
    `media` says otherwise; `events` names the schema of one event of the stream that may come instead.
    `computes`: tokens are computed, so rates and capacity count. `errors` are statuses beside those that
    follow from the rest, `others` statuses with a shape of their own."""

    id: str
    method: Literal["get", "post", "delete"]
    path: str
    tag: str
    summary: str
    answer: Schema | None
    words: str = ""
    prefixes: tuple[str, ...] = ("",)
    query: Schemas = field(default_factory=dict)
    headers: Schemas = field(default_factory=dict)
    body: Schema | None = None
    form: bool = False
    media: str = JSON
    events: str | None = None
    computes: bool = False
    key: bool = True
    errors: tuple[int, ...] = ()
    others: Mapping[int, Schema] = field(default_factory=dict)

    @property
    def family(self) -> str:
        """Whose error shape it has."""
        return "Native" if is_native(self.path) else "Anthropic" if is_anthropic(self.path) else "Compat"

    @property
    def names(self) -> list[str]:
        """The parameters of its path."""
        return [part[1:-1] for part in self.path.split("/") if part.startswith("{")]

    def served(self) -> list[tuple[str, str]]:
        """Every method and path that it is served at."""
        return [(self.method.upper(), prefix + self.path) for prefix in self.prefixes]

    def written(self, version: Version, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """As the standard writes it; `examples` are those that were run."""
        told: dict[str, Any] = {"operationId": self.id, "tags": [self.tag], "summary": self.summary}
        if self.words:
            told["description"] = self.words
        if parameters := self._parameters(examples):
            told["parameters"] = parameters
        if self.body is not None:
            media = "multipart/form-data" if self.form else JSON
            shown = _examples(version, examples, "body", lambda each: True)
            told["requestBody"] = {"required": True, "content": {media: {"schema": self.body, **shown}}}
        told["responses"] = self._responses(version, examples)
        if not self.key:
            told["security"] = []
        return told

    def _parameters(self, examples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        places = {"path": {name: text() for name in self.names}, "query": self.query, "header": self.headers}
        return [
            {"name": name, "in": place, **({"required": True} if place == "path" else {}), "schema": schema}
            | _first(examples, place, name)
            for place, schemas in places.items()
            for name, schema in schemas.items()
        ]

    def _responses(self, version: Version, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        told: dict[str, Any] = {}
        if self.answer is not None:
            told["200"] = {
                "description": self.summary,
                "headers": self._headers(),
                "content": self._content(version, examples),
            }
        for status, schema in self.others.items():
            content = {self.media: {"schema": schema}}
            told[str(status)] = {"description": self.summary, "headers": self._headers(), "content": content}
        for status in self._statuses():
            told[str(status)] = {"$ref": f"#/components/responses/{self.family}{status}"}
        return told

    def _content(self, version: Version, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        assert self.answer is not None
        whole = _examples(version, examples, "answer", lambda each: each["media"] == self.media)
        content: dict[str, Any] = {self.media: {"schema": self.answer, **whole}}
        if self.events is not None:
            schema = {"itemSchema": ref(self.events)} if version == "3.2" else {"schema": _told(self.events)}
            streams = _examples(version, examples, "answer", lambda each: each["media"] == EVENTS, True)
            content[EVENTS] = {**schema, **streams}
        return content

    def _headers(self) -> dict[str, Any]:
        names = ["X-Request-ID"]
        if self.family == "Anthropic":
            names.append("Request-ID")
        if self.computes:
            counted = ("Requests", "Tokens")
            names += [f"X-RateLimit-{what}-{each}" for what in ("Limit", "Remaining") for each in counted]
        return {name: {"$ref": f"#/components/headers/{name}"} for name in names}

    def _statuses(self) -> list[int]:
        found = set(self.errors)
        if self.body is not None:
            found.update(_PROBLEMS["body"])
        if self.query:
            found.add(400)
        if self.key:
            found.update(_PROBLEMS["key"])
        if self.names:
            found.update(_PROBLEMS["object"])
        if self.computes:
            found.update(_PROBLEMS["computes"])
        return sorted(found)


def event(name: str | None = None, data: Schema | None = None, **fields: Schema) -> Schema:
    """One server-sent event: its `event`, its `data` (a JSON schema of what the text holds) and other
    fields."""
    named = {} if name is None else {"event": const(name)}
    held = {} if data is None else {"contentMediaType": JSON, "contentSchema": data}
    properties = {**named, **fields, "data": {"type": "string", **held}}
    return {"type": "object", "properties": properties, "required": list(properties)}


def ending(data: str) -> Schema:
    """An event whose data is this text."""
    return {"type": "object", "properties": {"data": const(data)}, "required": ["data"]}


def models(prefix: str, tag: str, kind: str, prefixes: tuple[str, ...]) -> list[Operation]:
    """The list of models and one of them, in the shape that `kind` names."""
    path = prefix + "/v1/models"
    return [
        Operation(f"list{kind}s", "get", path, tag, "The models", ref(f"{kind}List"), prefixes=prefixes),
        Operation(f"get{kind}", "get", path + "/{name}", tag, "One model", ref(kind), prefixes=prefixes),
    ]


def _told(events: str) -> Schema:
    link = f"`#/components/schemas/{events}`"
    return {"type": "string", "description": f"Server-sent events; each has the shape of {link}."}


def _first(examples: Sequence[Mapping[str, Any]], place: str, name: str) -> dict[str, Any]:
    found = (each["request"].get(place, {}) for each in examples)
    return next(({"example": values[name]} for values in found if name in values), {})


def _examples(
    version: Version,
    examples: Sequence[Mapping[str, Any]],
    part: Literal["body", "answer"],
    fits: Any,
    serial: bool = False,
) -> dict[str, Any]:
    """The examples' request bodies or answers; `serial` ones are text, as it goes over the wire."""
    key = "value" if version == "3.1" else "serializedValue" if serial else "dataValue"
    shown = {
        each["name"]: {"summary": each["summary"], key: value}
        for each in examples
        if fits(each)
        for value in [each["request"].get("body") if part == "body" else each["answer"]]
        if value is not None
    }
    return {"examples": shown} if shown else {}
