"""Messages of a conversation, neutral between dialects: who says what, thinks what, calls which tool.

Made by `llm`, the server's dialects and `train/conversations` (mostly with `Message.from_dict`), read by
`template` and `chat`. Invariant: a `Message` is well formed: its role is one of `ROLES`, its content is text,
and only an assistant reasons, calls tools or is continued.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from math import copysign, isfinite
from typing import Any, NoReturn

ROLES = ("system", "user", "assistant", "tool")
_MOST_DIGITS = 4300  # Python reads no longer whole numbers, by default
_SYNONYMS = {"developer": "system", "function": "tool"}

Tool = dict[str, Any]
"""A tool's definition, as OpenAI has it: `{"type": "function", "function": {"name", "parameters", ...}}`."""


def json_object(text: str) -> dict[str, Any] | None:
    """The object that `text` spells in strict JSON (no NaN), or None. A number beyond floats, which JSON may
    spell but hardly anyone can read, is the largest float."""
    try:
        value = json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_whole)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    return number if isfinite(number) else copysign(sys.float_info.max, number)


def _whole(digits: str) -> float:
    return int(digits) if len(digits) < _MOST_DIGITS else _finite(digits)


@dataclass(frozen=True)
class ToolCall:
    """A call of tool `name`. `arguments` is JSON text, as it goes over the wire; in history it may be any
    text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class Message:
    """One turn. `tool_call_id` says which call a tool's message answers; `partial` asks that the model
    continue this very message, which must then be the last. Raises ValueError on nonsense, naming the
    field."""

    role: str
    content: str = ""
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    partial: bool = False

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ValueError(f"role is {self.role!r}: give one of {', '.join(ROLES)}")
        if not isinstance(self.content, str):
            raise ValueError(f"content is {type(self.content).__name__}: give a string")
        if self.role != "assistant":
            for field in ("reasoning", "tool_calls", "partial"):
                if getattr(self, field):
                    raise ValueError(
                        f"{field} is set on a {self.role} message: only an assistant's may have it"
                    )
        if self.partial and self.tool_calls:
            raise ValueError("partial is set on a message with tool_calls: only text can be continued")

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str = "message") -> Message:
        """Read OpenAI's wire shape: `content` a string or a list of text parts, `reasoning_content`,
        `tool_calls`, `tool_call_id`, `partial`; other keys are ignored. Raises ValueError, its message
        starting with `where`."""
        if not isinstance(data, Mapping):
            raise ValueError(f"{where} is {type(data).__name__}: give an object with role and content")
        role = data.get("role")
        calls = data.get("tool_calls") or []
        reasoning, answers, partial = (data.get(k) for k in ("reasoning_content", "tool_call_id", "partial"))
        if not isinstance(calls, list):
            raise ValueError(f"{where}.tool_calls is {type(calls).__name__}: give a list")
        for field, value in (("reasoning_content", reasoning), ("tool_call_id", answers)):
            if value is not None and not isinstance(value, str):
                raise ValueError(f"{where}.{field} is {type(value).__name__}: give a string")
        if partial is not None and not isinstance(partial, bool):
            raise ValueError(f"{where}.partial is {type(partial).__name__}: give true or false")
        silent = role == "assistant" and data.get("content") is None
        content = "" if silent else _text(data.get("content"), f"{where}.content")
        tool_calls = tuple(_call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls))
        try:
            role = _SYNONYMS.get(role, role) if isinstance(role, str) else role
            return cls(role, content, reasoning, tool_calls, answers, bool(partial))  # type: ignore[arg-type]
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None


def _text(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError(f"{where} is {type(content).__name__}: give a string or a list of text parts")
    for i, part in enumerate(content):
        if not isinstance(part, Mapping) or part.get("type", "text") != "text":
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise ValueError(f"{where}[{i}] is of type {kind!r}: this model reads text parts only")
        if not isinstance(part.get("text"), str):
            raise ValueError(f"{where}[{i}].text is missing or no string")
    return "".join(part["text"] for part in content)


def _call(call: object, where: str) -> ToolCall:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise ValueError(f"{where}.function is missing: give an object with name and arguments")
    call_id, name, arguments = call.get("id") or "", function.get("name"), function.get("arguments")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{where}.function.name is missing or no string")
    if not isinstance(call_id, str):
        raise ValueError(f"{where}.id is {type(call_id).__name__}: give a string")
    if arguments is None:
        arguments = "{}"
    elif isinstance(arguments, Mapping):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif not isinstance(arguments, str):
        raise ValueError(f"{where}.function.arguments is {type(arguments).__name__}: give JSON text")
    return ToolCall(call_id, name, arguments)
