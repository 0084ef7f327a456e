"""Grammar: what an answer must look like, as asked for: a form of its text, calls of tools, or either.

Read from `response_format`, `tool_choice` and `structured_outputs` by `llm` and `server/validation`, compiled
by `grammar_compiler`. Invariant: a `GrammarSpec` is frozen text, the same for the same wishes, and what is
compiled may be kept; whether a schema can be obeyed is known only when it is compiled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .messages import Tool

Form = Literal["schema", "regex", "choice"]
ANY_OBJECT = '{"type": "object"}'
# Where a tool's schema says no more than this, its properties are all its arguments: a function that is
# called with others fails.
_LISTED = {"type", "title", "description", "properties", "required", "$defs", "definitions", "$schema"}
_UNKNOWN_FORMAT = (
    "Unknown format of response_format, response_format should be a dict, includes 'type' and an optional "
    "key 'json_schema'."
)
_CHOICES = (
    'tool_choice is one of the strings that should be ["none", "auto"], or "required", or '
    '{"type": "function", "function": {"name": …}}'
)


class GrammarError(ValueError):
    """A wish that cannot be granted; `where` names the parameter at fault."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(message)
        self.where = where


@dataclass(frozen=True)
class TextForm:
    """The answer's text: JSON of a schema, a text that a regular expression matches as a whole, or one of the
    texts of a JSON list. `where` names the parameter it came from."""

    form: Form
    source: str
    where: str


@dataclass(frozen=True)
class CallForm:
    """A tool that may be called: its `parameters` are a JSON schema as text; `where` names them."""

    name: str
    parameters: str
    where: str


@dataclass(frozen=True)
class GrammarSpec:
    """An answer is a text of this form, or calls of these tools (one, or with `many` one or more); with both
    given, either."""

    text: TextForm | None = None
    calls: tuple[CallForm, ...] = ()
    many: bool = False


def answer_spec(
    *,
    response_format: object = None,
    structured_outputs: object = None,
    tools: Sequence[Tool] | None = None,
    tool_choice: object = None,
    parallel: bool = False,
) -> GrammarSpec | None:
    """What these parameters of a request ask of the answer; None if nothing. `parallel`: several calls may be
    made. Raises GrammarError."""
    text = _response_format(response_format)
    if structured_outputs is not None:
        if text is not None:
            raise GrammarError(
                "structured_outputs", "response_format and structured_outputs are given: give one"
            )
        text = _structured_outputs(structured_outputs)
    if tool_choice in (None, "auto", "none") and text is None:
        return None
    if tool_choice == "none":
        return GrammarSpec(text)
    name = None if tool_choice in (None, "auto", "required") else _named(tool_choice)
    named = [(i, each) for i, each in enumerate(tools or ()) if name in (None, each["function"]["name"])]
    offered = tuple(_call_form(tool, i) for i, tool in named)
    if tool_choice in (None, "auto"):
        return GrammarSpec(text, offered, parallel)
    if tool_choice == "required":
        if not offered:
            raise GrammarError("tool_choice", 'tool_choice is "required", but no tools are given')
        return GrammarSpec(calls=offered, many=parallel)
    if not offered:
        raise GrammarError("tool_choice", f"tool_choice names {name!r}, but no tool of that name is given")
    return GrammarSpec(calls=offered[:1])


def _response_format(wanted: object) -> TextForm | None:
    """OpenAI's object with `type` "text", "json_object" or "json_schema"."""
    if wanted is None:
        return None
    if not isinstance(wanted, Mapping):
        raise GrammarError("response_format", _UNKNOWN_FORMAT)
    match wanted.get("type"):
        case "text":
            return None
        case "json_object":
            return TextForm("schema", ANY_OBJECT, "response_format")
        case "json_schema":
            wrapped = wanted.get("json_schema")
            if not isinstance(wrapped, Mapping) or not isinstance(wrapped.get("schema"), Mapping):
                words = 'must be {"name": …, "schema": …}, the schema an object'
                raise GrammarError("response_format", f"response_format.json_schema {words}")
            for name, kind, words in (("name", str, "a text"), ("strict", bool, "true or false")):
                if not isinstance(wrapped.get(name), kind | None):
                    raise GrammarError(
                        "response_format", f"response_format.json_schema.{name} must be {words}"
                    )
            return TextForm("schema", _dump(wrapped["schema"], "response_format"), "response_format")
    raise GrammarError("response_format", _UNKNOWN_FORMAT)


def _structured_outputs(wanted: object) -> TextForm:
    """vLLM's object with one of `json` (a schema, or its text), `json_object`, `regex` and `choice`."""
    where, known = "structured_outputs", ("json", "json_object", "regex", "choice")
    given = [k for k in known if wanted.get(k) not in (None, False)] if isinstance(wanted, Mapping) else []
    if not isinstance(wanted, Mapping) or len(given) != 1:
        raise GrammarError(where, f"structured_outputs must be an object with one of {', '.join(known)}")
    value = wanted[given[0]]
    match given[0]:
        case "json":
            schema = _parsed(value) if isinstance(value, str) else value
            if isinstance(schema, Mapping):
                return TextForm("schema", _dump(schema, where), where)
            raise GrammarError(
                where, "structured_outputs.json must be a JSON schema (an object, or its text)"
            )
        case "json_object" if value is True:
            return TextForm("schema", ANY_OBJECT, where)
        case "regex" if isinstance(value, str) and value:
            return TextForm("regex", value, where)
        case "choice" if isinstance(value, list) and value and all(isinstance(v, str) and v for v in value):
            return TextForm("choice", _dump(value, where), where)
    expected = {
        "json_object": "true",
        "regex": "a regular expression",
        "choice": "a list of texts, none empty",
    }
    raise GrammarError(where, f"structured_outputs.{given[0]} must be {expected[given[0]]}")


def _call_form(tool: Tool, i: int) -> CallForm:
    function = tool["function"]
    where = f"tools[{i}].function.parameters"
    schema = function.get("parameters") or {}
    if not isinstance(schema, Mapping) or schema.get("type", "object") != "object":
        raise GrammarError(where, f"{where} must be a JSON schema of type object")
    closed = {"additionalProperties": False} if schema.keys() <= _LISTED and schema.get("properties") else {}
    return CallForm(function["name"], _dump({"type": "object", **closed, **schema}, where), where)


def _named(choice: object) -> str:
    """The name in `{"type": "function", "function": {"name": …}}`."""
    function = choice.get("function") if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(choice, Mapping) or choice.get("type") != "function" or not isinstance(name, str):
        raise GrammarError("tool_choice", _CHOICES)
    return name


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _dump(value: object, where: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise GrammarError(where, f"{where} is not JSON: {error}") from None
