"""Schemas of the OpenAPI document: short forms for what bodies are made of.

Called by the tables beside it. Invariants: every function gives a new JSON schema (2020-12); what an answer's
object names is required unless it says otherwise; what a request may leave out may also be null.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

Schema = dict[str, Any]
Schemas = Mapping[str, Schema]
JSON_OBJECT: Schema = {"type": "object", "additionalProperties": True}


class Setting(NamedTuple):
    """Stands in a schema for the sum of these fields of the server's settings."""

    names: tuple[str, ...]


def ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def text(words: str = "", *values: str, **more: Any) -> Schema:
    """A string; one of `values`, if there are any."""
    listed = {"enum": list(values)} if values else {}
    return _told(words, {"type": "string", **listed, **more})


def const(value: str | bool) -> Schema:
    return {"type": "string" if isinstance(value, str) else "boolean", "const": value}


def flag(words: str = "", **more: Any) -> Schema:
    return _told(words, {"type": "boolean", **more})


def whole(words: str = "", low: int | None = None, high: int | Setting | None = None, **more: Any) -> Schema:
    """An integer from `low` to `high`."""
    bounds = {"minimum": low, "maximum": high}
    return _told(words, {"type": "integer", **_without_none(bounds), **more})


def count(words: str = "") -> Schema:
    return whole(words, 0)


def number(words: str = "", **more: Any) -> Schema:
    return _told(words, {"type": "number", **more})


def many(items: Schema, words: str = "", **more: Any) -> Schema:
    return _told(words, {"type": "array", "items": items, **more})


def either(*schemas: Schema, words: str = "") -> Schema:
    return _told(words, {"anyOf": list(schemas)})


def nullable(schema: Schema) -> Schema:
    """The same or null."""
    kind = schema.get("type")
    if isinstance(kind, str) and "const" not in schema:
        listed = {"enum": [*schema["enum"], None]} if "enum" in schema else {}
        return {**schema, "type": [kind, "null"], **listed}
    if "anyOf" in schema:
        return {**schema, "anyOf": [*schema["anyOf"], {"type": "null"}]}
    return {"anyOf": [schema, {"type": "null"}]}


def answer(words: str, fields: Schemas, optional: Schemas | None = None) -> Schema:
    """An object of an answer: `fields` are always there, `optional` ones at times."""
    return _object(words, {**fields, **(optional or {})}, fields)


def request(words: str, required: Schemas, optional: Schemas | None = None) -> Schema:
    """An object of a request: what is optional may be null, and what is unknown is ignored."""
    shown = {name: nullable(schema) for name, schema in (optional or {}).items()}
    return _object(words, {**required, **shown}, required) | {"additionalProperties": True}


def listed(item: str, words: str) -> Schema:
    """OpenAI's list of a kind of object."""
    ends = {"first_id": nullable(text()), "last_id": nullable(text())}
    fields = {
        "object": const("list"),
        "data": many(ref(item)),
        "has_more": flag("There are more after these."),
    }
    return answer(words, fields, ends)


def _object(words: str, fields: Schemas, required: Iterable[str]) -> Schema:
    needed = {"required": list(required)} if required else {}
    return _told(words, {"type": "object", "properties": dict(fields), **needed})


def _told(words: str, schema: Schema) -> Schema:
    return {"description": words, **schema} if words else schema


def _without_none(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
