"""Conversations off the wire: messages, history, roles and contents, checked in the contract's words.

Called by `dashscope` and `openai`, which send the same shapes; `anthropic` and `responses` put the messages
together themselves and have them checked here. Invariant: a `Conversation` that leaves here
holds at least one user turn, its tool messages answer calls, and only its last message may be partial.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qnext.text.messages import Message

from .errors import invalid
from .exchange import Conversation, Rules

_ROLES = ["system", "assistant", "user", "tool", "function"]
_EMPTY = "Role must be user or assistant and Content length must be greater than 0"
_STRAY = 'messages with role "tool" must be a response to a preceeding message with "tool_calls".'


def conversation(raw: Any, rules: Rules) -> Conversation:
    """`raw` is the `messages` of a body. Raises ApiError in the words clients know."""
    require_template(rules, "messages")
    if not isinstance(raw, list):
        raise invalid("'messages' must be a list of messages", "messages")
    if not raw:
        raise invalid("[] is too short - 'messages'", "messages")
    messages: list[Message] = []
    for i, each in enumerate(raw):
        message = _message(each, i)
        if message.role == "tool" and each["role"] == "tool" and not answers(messages):
            raise invalid(_STRAY, f"messages[{i}]")
        if message.partial and (i + 1 < len(raw) or rules.thinking):
            where = "the last message" if i + 1 < len(raw) else "models that do not think"
            raise invalid(f"partial is possible only with {where}", f"messages[{i}].partial")
        messages.append(message)
    return with_user(messages, "messages")


def require_template(rules: Rules, param: str) -> None:
    """Refuses conversations with a base model; `param` is where the dialect has them."""
    if not rules.template:
        raise invalid('This base model has no chat template: give "prompt" instead of "messages"', param)


def with_user(messages: list[Message], param: str) -> Conversation:
    """These messages, if a user speaks among them."""
    if not any(message.role == "user" for message in messages):
        raise invalid(_EMPTY, param)
    return Conversation(tuple(messages))


def from_prompt(prompt: str) -> Conversation:
    if not prompt:
        raise invalid(_EMPTY, "prompt")
    return Conversation((Message("user", prompt),))


def history(raw: Any, prompt: Any) -> list[dict[str, Any]]:
    """The legacy `history` with its `prompt`, as messages."""
    turns: list[dict[str, Any]] = []
    if not isinstance(raw, list) or not all(isinstance(pair, Mapping) for pair in raw):
        raise invalid('\'history\' must be a list of {"user": …, "bot": …}', "history")
    for pair in raw:
        turns += [
            {"role": "user", "content": pair.get("user")},
            {"role": "assistant", "content": pair.get("bot")},
        ]
    return [*turns, {"role": "user", "content": prompt}]


def _message(raw: Any, i: int) -> Message:
    if not isinstance(raw, Mapping):
        raise invalid(f"messages[{i}] must be an object with role and content", f"messages[{i}]")
    role = "system" if raw.get("role") == "developer" else raw.get("role")
    if role not in _ROLES:
        raise invalid(f"{role} is not one of {_ROLES} - 'messages.['{i}].role'", f"messages[{i}].role")
    content = raw.get("content")
    where = f"messages[{i}].content"
    if content is None and not (role == "assistant" and raw.get("tool_calls")):
        raise invalid("The content field is a required field.", where)
    text = _text(content, where)
    if role == "user" and not text:
        raise invalid(_EMPTY, where)
    try:
        return Message.from_dict({**raw, "role": role, "content": text}, f"messages[{i}]")
    except ValueError as error:
        raise invalid(str(error), f"messages[{i}]") from None


def _text(content: Any, where: str) -> str:
    """A string, or text parts with or without their `type`; null is the silence beside tool calls."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        raise invalid("input content must be a string.", where)
    for part in content:
        kind = part.get("type", "text") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise invalid(
                'input content must be a string. Content parts must be {"type": "text", "text": …}.', where
            )
    return "".join(part["text"] for part in content)


def answers(before: list[Message]) -> bool:
    """Whether a tool message may follow: the turn before it, other results aside, made calls."""
    asked = next((message for message in reversed(before) if message.role != "tool"), None)
    return asked is not None and bool(asked.tool_calls)
