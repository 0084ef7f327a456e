"""Items of the Responses API: what a conversation is made of there, checked, and as messages.

Called by `responses`. Invariant: pure functions, no I/O; an item that leaves `read_items` has an id, and its
content is a list of parts, so that it may be stored, listed and sent again as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qnext.text.messages import Message, ToolCall

from .conversation import answers
from .errors import invalid

Item = dict[str, Any]
_ROLES = ("user", "assistant", "system", "developer")
_TEXTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")
_KINDS = "message, function_call, function_call_output or reasoning"


def read_items(raw: Any, request_id: str) -> list[Item]:
    """`input` of a body: a text or a list of items; those without an id get one. Raises ApiError."""
    if isinstance(raw, str) and raw:
        raw = [{"role": "user", "content": raw}]
    if not isinstance(raw, list) or not raw:
        raise invalid("'input' must be a text or a list of items, not empty", "input")
    return [_item(each, f"input[{i}]", f"{request_id}_{i}") for i, each in enumerate(raw)]


def as_messages(items: Sequence[Item]) -> list[Message]:
    """A conversation's items as turns: thoughts, words and calls in a row are one. Raises ApiError for a
    result that answers no call."""
    messages: list[Message] = []
    turn = _Turn()
    for item in items:
        match item["type"]:
            case "reasoning":
                if turn.content or turn.calls:
                    turn = turn.ended(messages)
                turn.reasoning += _joined(item["content"] or item["summary"])
            case "function_call":
                turn.calls.append(ToolCall(item["call_id"], item["name"], item["arguments"]))
            case "message" if item["role"] == "assistant":
                if turn.content and not turn.calls:
                    turn = turn.ended(messages)
                turn.content += _joined(item["content"])
            case "function_call_output":
                turn = turn.ended(messages)
                if not answers(messages):
                    words = (
                        "answers no function_call: send the call's item before it, or previous_response_id"
                    )
                    raise invalid(f"the function_call_output of {item['call_id']!r} {words}", "input")
                messages.append(Message("tool", _joined(item["output"]), tool_call_id=item["call_id"]))
            case _:
                turn = turn.ended(messages)
                role = "system" if item["role"] == "developer" else item["role"]
                messages.append(Message(role, _joined(item["content"])))
    turn.ended(messages)
    return messages


@dataclass
class _Turn:
    """An assistant's turn as far as it has been read."""

    content: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)

    def ended(self, messages: list[Message]) -> _Turn:
        """Adds it to the messages, if it says anything; the next turn."""
        if self.content or self.calls:
            messages.append(Message("assistant", self.content, self.reasoning or None, tuple(self.calls)))
        return _Turn()


def _item(raw: Any, where: str, name: str) -> Item:
    kind = raw.get("type", "message") if isinstance(raw, Mapping) else None
    readers = {
        "message": _message,
        "function_call": _call,
        "function_call_output": _result,
        "reasoning": _reasoning,
    }
    if not isinstance(kind, str) or kind not in readers:
        raise invalid(f"{where} is of type {kind!r}: give {_KINDS}", f"{where}.type")
    given = raw.get("id")
    if given is not None and not isinstance(given, str):
        raise invalid(f"{where}.id must be a text", f"{where}.id")
    return readers[kind](raw, where) | {"type": kind, "id": given or f"{_PREFIX[kind]}_{name}"}


_PREFIX = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}


def _message(raw: Mapping[str, Any], where: str) -> Item:
    role = raw.get("role")
    if role not in _ROLES:
        raise invalid(f"{where}.role must be one of {', '.join(_ROLES)}", f"{where}.role")
    parts = _parts(raw.get("content"), f"{where}.content", role == "assistant")
    if role == "user" and not _joined(parts):
        raise invalid(f"{where}.content must not be empty", f"{where}.content")
    return {"role": role, "content": parts, "status": "completed"}


def _call(raw: Mapping[str, Any], where: str) -> Item:
    found = {name: raw.get(name) for name in ("call_id", "name", "arguments")}
    for name, value in found.items():
        if not isinstance(value, str) or not (value or name == "arguments"):
            raise invalid(f"{where}.{name} must be a text", f"{where}.{name}")
    return found | {"status": "completed"}


def _result(raw: Mapping[str, Any], where: str) -> Item:
    call = raw.get("call_id")
    if not isinstance(call, str) or not call:
        raise invalid(f"{where}.call_id must be a text", f"{where}.call_id")
    return {
        "call_id": call,
        "output": _parts(raw.get("output"), f"{where}.output", False),
        "status": "completed",
    }


def _reasoning(raw: Mapping[str, Any], where: str) -> Item:
    found: Item = {"status": "completed"}
    for name, kind in (("summary", "summary_text"), ("content", "reasoning_text")):
        texts = _parts(raw.get(name) or [], f"{where}.{name}", False)
        found[name] = [{"type": kind, "text": part["text"]} for part in texts]
    return found


def _parts(content: Any, where: str, spoken: bool) -> list[Item]:
    """Parts of text; `spoken` by the model. What it refused counts as said."""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        raise invalid(f"{where} must be a text or a list of parts", where)
    made: list[Item] = []
    for i, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, Mapping) else None
        if kind not in (*_TEXTS, "refusal"):
            raise invalid(f"{where}[{i}] is of type {kind!r}: this model reads text only", f"{where}[{i}]")
        if not isinstance(text, str):
            raise invalid(f"{where}[{i}].text must be a text", f"{where}[{i}].text")
        more = {"type": "output_text", "annotations": []} if spoken else {"type": "input_text"}
        made.append({**more, "text": text})
    return made


def _joined(parts: Sequence[Item]) -> str:
    return "".join(part["text"] for part in parts)
