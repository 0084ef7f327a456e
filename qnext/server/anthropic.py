"""Anthropic's messages dialect: a body to a `ChatRequest`.

Called by `anthropic_routes`; `anthropic_reply` writes what comes back. Invariant: pure functions, no I/O;
what this model cannot take in (images, documents, tools that a server would run) is refused, never left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from qnext.text.messages import Message, ToolCall

from .anthropic_reply import MessageReply
from .conversation import answers, require_template, with_user
from .errors import ApiError, invalid, renamed
from .exchange import ChatRequest, Conversation, Rules
from .validation import Params, chat_request, flag, span, tools_on_offer

NO_MODEL = "model: Field required"
_AS_IT_IS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "priority",
)
_NAMES = {
    "response_format.json_schema": "output_config.format",
    "response_format": "output_config.format",
    "function.parameters": "input_schema",
    "function.name": "name",
}
_CHOICE = '{"type": "auto"}, {"type": "any"}, {"type": "none"} or {"type": "tool", "name": …}'


def parse(body: Params, rules: Rules, *, request_id: str) -> tuple[ChatRequest, MessageReply]:
    """Read a body of /messages. Raises ApiError."""
    if body.get("max_tokens") is None:
        raise invalid("max_tokens: Field required", "max_tokens")
    most = rules.max_output + (rules.max_thinking if rules.thinking else 0)
    params = {name: body[name] for name in _AS_IT_IS if name in body}
    params |= {
        "max_completion_tokens": span(body, "max_tokens", 1, most),
        "stop": _stops(body),
        "thinking_budget": _thinking(body, rules),
        "response_format": _format(body),
        **offer(body),
    }
    if body.get("mcp_servers"):
        raise invalid("mcp_servers: are not supported, only tools that the client runs", "mcp_servers")
    prompts, stream = (read_prompt(body, rules),), bool(flag(body, "stream"))
    try:
        asked = chat_request(body["model"], prompts, params, rules, stream=stream, logprobs=None)
    except ApiError as error:
        raise renamed(error, _NAMES) from None
    return asked, MessageReply(request_id, body["model"])


def read_prompt(body: Params, rules: Rules) -> Conversation:
    """`system` and `messages` of a body. Raises ApiError."""
    require_template(rules, "messages")
    raw = body.get("messages")
    if not isinstance(raw, list) or not raw:
        raise invalid("messages: at least one message is required", "messages")
    messages: list[Message] = []
    system = body.get("system")
    if system:
        messages.append(Message("system", _text(system, "system")))
    for i, each in enumerate(raw):
        where = f"messages.{i}"
        role = each.get("role") if isinstance(each, Mapping) else None
        if role not in ("user", "assistant", "system"):
            raise invalid(f'{where}.role: must be "user" or "assistant"', f"{where}.role")
        read = _assistant if role == "assistant" else _user
        messages += read(each.get("content"), role, f"{where}.content", messages)
    last = messages[-1]
    if last.role == "assistant":
        messages[-1] = _continued(last, rules)
    return with_user(messages, "messages")


def offer(body: Params) -> dict[str, Any]:
    """`tools` and `tool_choice` as chat completions have them. Raises ApiError."""
    tools, choice = body.get("tools") or [], body.get("tool_choice")
    if not isinstance(tools, list):
        raise invalid("tools: must be a list of tools", "tools")
    shown: dict[str, Any] = {"tools": [_tool(tool, f"tools.{i}") for i, tool in enumerate(tools)] or None}
    choice = {"type": "auto"} if choice is None else choice
    kind = choice.get("type") if isinstance(choice, Mapping) else None
    if kind not in ("auto", "any", "none", "tool"):
        raise invalid(f"tool_choice: must be {_CHOICE}", "tool_choice")
    if kind in ("any", "tool") and not tools:
        raise invalid(f'tool_choice: is of type "{kind}", but no tools are given', "tool_choice")
    if kind == "tool":
        shown["tool_choice"] = {"type": "function", "function": {"name": choice.get("name")}}
    else:
        shown["tool_choice"] = "required" if kind == "any" else kind
    return {**shown, "parallel_tool_calls": not flag(choice, "disable_parallel_tool_use")}


def offered_tools(body: Params) -> tuple[dict[str, Any], ...]:
    """The tools that the model is shown. Raises ApiError."""
    try:
        return tools_on_offer(offer(body))
    except ApiError as error:
        raise renamed(error, _NAMES) from None


def _user(content: Any, role: str, where: str, before: list[Message]) -> list[Message]:
    """A user's turn: results of calls, each a message of its own, and text."""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    made: list[Message] = []
    text = ""
    for i, block in enumerate(_blocks(content, where)):
        if block.get("type") == "tool_result":
            if text:
                made, text = [*made, Message(role, text)], ""
            if not answers([*before, *made]):
                words = "must answer a tool_use of the message before it, ahead of any text"
                raise invalid(f"{where}.{i}: a tool_result {words}", f"{where}.{i}")
            call = block.get("tool_use_id")
            if not isinstance(call, str):
                raise invalid(f"{where}.{i}.tool_use_id: Field required", f"{where}.{i}.tool_use_id")
            result = _text(block.get("content") or "", f"{where}.{i}.content")
            made.append(Message("tool", result, tool_call_id=call))
        else:
            text += _text([block], f"{where}.{i}")
    if text:
        made.append(Message(role, text))
    if not made:
        raise invalid(f"{where}: must not be empty", where)
    return made


def _assistant(content: Any, role: str, where: str, before: list[Message]) -> list[Message]:
    """An assistant's turn: text, thoughts and calls in one message."""
    if isinstance(content, str):
        return [Message(role, content)]
    text, thoughts = "", ""
    calls: list[ToolCall] = []
    for i, block in enumerate(_blocks(content, where)):
        match block.get("type"):
            case "thinking":
                thought = block.get("thinking")
                if not isinstance(thought, str):
                    raise invalid(f"{where}.{i}.thinking: must be a text", f"{where}.{i}.thinking")
                thoughts += thought
            case "redacted_thinking":
                pass  # nobody can read it
            case "tool_use":
                calls.append(_call(block, f"{where}.{i}"))
            case _:
                text += _text([block], f"{where}.{i}")
    return [Message(role, text, thoughts or None, tuple(calls))]


def _continued(last: Message, rules: Rules) -> Message:
    """A conversation that ends with the assistant's words asks for more of them."""
    if last.tool_calls:
        words = "the last message has tool_use blocks: send their tool_result blocks after it"
        raise invalid(f"messages: {words}", "messages")
    if rules.thinking:
        words = "the last message is the assistant's, but a model that thinks cannot go on with it"
        raise invalid(f"messages: {words}: end with a user's message", "messages")
    return Message("assistant", last.content, last.reasoning, partial=True)


def _blocks(content: Any, where: str) -> list[Mapping[str, Any]]:
    if not isinstance(content, list) or not all(isinstance(block, Mapping) for block in content):
        raise invalid(f"{where}: must be a text or a list of content blocks", where)
    return content


def _text(content: Any, where: str) -> str:
    """A text, or blocks of text."""
    if isinstance(content, str):
        return content
    for block in _blocks(content, where):
        kind = block.get("type")
        if kind != "text":
            raise invalid(f"{where}: blocks of type {kind!r} are not supported here, text is", where)
        if not isinstance(block.get("text"), str):
            raise invalid(f"{where}: a text block must have a text", where)
    return "".join(block["text"] for block in content)


def _call(block: Mapping[str, Any], where: str) -> ToolCall:
    name, given, call = block.get("name"), block.get("input"), block.get("id")
    for field, value, kind in (("id", call, str), ("name", name, str), ("input", given or {}, Mapping)):
        if not isinstance(value, kind) or (kind is str and not value):
            wanted = "a text" if kind is str else "an object"
            raise invalid(f"{where}.{field}: must be {wanted}", f"{where}.{field}")
    return ToolCall(str(call), str(name), json.dumps(given or {}, ensure_ascii=False))


def _tool(tool: Any, where: str) -> dict[str, Any]:
    """A tool as chat completions define it."""
    if not isinstance(tool, Mapping):
        raise invalid(f'{where}: must be {{"name", "description", "input_schema"}}', where)
    kind = tool.get("type")
    if kind not in (None, "custom"):
        raise invalid(
            f"{where}.type: {kind!r} is not supported, only tools that the client runs", f"{where}.type"
        )
    schema = tool.get("input_schema")
    if not isinstance(schema, Mapping):
        raise invalid(f"{where}.input_schema: must be a JSON schema", f"{where}.input_schema")
    function = {"name": tool.get("name"), "parameters": schema}
    if tool.get("description"):
        function["description"] = tool["description"]
    return {"type": "function", "function": function}


def _stops(body: Params) -> list[str] | None:
    stops = body.get("stop_sequences")
    if stops is None:
        return None
    if not isinstance(stops, list) or not all(isinstance(stop, str) and stop for stop in stops):
        raise invalid("stop_sequences: must be a list of texts, none empty", "stop_sequences")
    return stops


def _thinking(body: Params, rules: Rules) -> int | None:
    """The budget of a model that thinks; others ignore the wish."""
    wanted = body.get("thinking")
    if wanted is None:
        return None
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if kind not in ("enabled", "disabled", "adaptive"):
        raise invalid('thinking.type: must be "enabled", "adaptive" or "disabled"', "thinking.type")
    if not rules.thinking:
        return None
    if kind == "disabled":
        raise invalid("thinking: this model always thinks, leave it out or enable it", "thinking")
    try:
        return span(wanted, "budget_tokens", 1, rules.max_thinking)
    except ApiError as error:
        raise invalid(f"thinking.budget_tokens: {error.message}", "thinking.budget_tokens") from None


def _format(body: Params) -> dict[str, Any] | None:
    """`output_config.format` (or, as it was called, `output_format`): a JSON schema."""
    config = body.get("output_config") or {}
    wanted = config.get("format") if isinstance(config, Mapping) else None
    wanted = wanted or body.get("output_format")
    if wanted is None:
        return None
    if not isinstance(wanted, Mapping) or wanted.get("type") != "json_schema":
        words = 'must be {"type": "json_schema", "schema": …}'
        raise invalid(f"output_config.format: {words}", "output_config.format")
    return {"type": "json_schema", "json_schema": {"name": "output", "schema": wanted.get("schema")}}
