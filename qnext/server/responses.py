"""The Responses dialect: a body to a `ChatRequest`.

Called by `response_routes`; `response_reply` writes what comes back. Invariant: pure functions, no I/O; the
conversation so far is given, never looked up, and instructions hold for one response alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qnext.text.messages import Message

from .conversation import require_template, with_user
from .errors import ApiError, invalid, renamed
from .exchange import ChatRequest, Conversation, Rules
from .response_items import Item, as_messages, read_items
from .response_reply import ResponseReply
from .validation import Params, chat_request, flag, span, tools_on_offer

MAX_LOGPROBS = 20
_AS_IT_IS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "priority",
    "enable_thinking",
    "thinking_budget",
    "parallel_tool_calls",
)
_NAMES = {
    "response_format.json_schema": "text.format",
    "response_format": "text.format",
    "max_completion_tokens": "max_output_tokens",
    "'messages'": "'input'",
    "messages": "input",
    ".function.": ".",
}
_NOT_HERE = {
    "background": "background responses are not served: stream, or wait for the answer",
    "conversation": "conversations are not served: go on with previous_response_id",
    "prompt": "prompt templates are not served: send instructions and input",
}
_CHOICE = (
    '"none", "auto", "required", {"type": "function", "name": …} or {"type": "allowed_tools", '
    '"mode": "auto" or "required", "tools": [objects with a name]}'
)


def parse(
    body: Params, rules: Rules, *, request_id: str, created: int, before: Sequence[Item] = ()
) -> tuple[ChatRequest, ResponseReply, list[Item]]:
    """Read a body of /responses that goes on after the items `before`: the request, its reply, and the items
    of the conversation up to the answer. Raises ApiError."""
    for name, words in _NOT_HERE.items():
        if body.get(name):
            raise invalid(words, name)
    stream, tools = bool(flag(body, "stream")), _offer(body)
    items = [*before, *read_items(body.get("input"), request_id)]
    params = {name: body[name] for name in _AS_IT_IS if name in body} | tools
    params |= {"max_completion_tokens": body.get("max_output_tokens"), "response_format": _format(body)}
    try:
        asked = chat_request(
            body["model"],
            (_prompt(body, items, rules),),
            params,
            rules,
            stream=stream,
            logprobs=_logprobs(body),
        )
    except ApiError as error:
        raise renamed(error, _NAMES) from None
    return asked, ResponseReply(request_id, created, _told(body, asked)), items


def read_prompt(
    body: Params, rules: Rules, request_id: str, before: Sequence[Item]
) -> tuple[Conversation, tuple[dict[str, Any], ...]]:
    """The conversation of a body and the tools that the model is shown: what its tokens are counted of."""
    items = [*before, *read_items(body.get("input"), request_id)]
    try:
        return _prompt(body, items, rules), tools_on_offer(_offer(body))
    except ApiError as error:
        raise renamed(error, _NAMES) from None


def keeps(body: Params) -> bool:
    """Whether the response is to be stored: unless `store` is false."""
    return flag(body, "store") is not False


def previous(body: Params) -> str | None:
    """The response that a body goes on after."""
    name = body.get("previous_response_id")
    if name is not None and not isinstance(name, str):
        raise invalid("'previous_response_id' must be a text", "previous_response_id")
    return name


def _prompt(body: Params, items: Sequence[Item], rules: Rules) -> Conversation:
    require_template(rules, "input")
    instructions = body.get("instructions")
    if instructions is not None and not isinstance(instructions, str):
        raise invalid("'instructions' must be a text", "instructions")
    first = [Message("system", instructions)] if instructions else []
    return with_user([*first, *as_messages(items)], "input")


def _offer(body: Params) -> dict[str, Any]:
    """`tools` and `tool_choice` as chat completions have them."""
    raw = body.get("tools")
    if raw is not None and not isinstance(raw, list):
        raise invalid("'tools' must be a list of tools", "tools")
    tools = [_tool(tool, f"tools[{i}]") for i, tool in enumerate(raw or [])]
    try:
        tools_on_offer({"tools": tools})  # those that are not allowed this time are looked at, too
    except ApiError as error:
        raise renamed(error, _NAMES) from None
    tools, choice = _choose(tools, body.get("tool_choice"))
    return {"tools": tools or None, "tool_choice": choice}


def _choose(tools: list[dict[str, Any]], choice: Any) -> tuple[list[dict[str, Any]], Any]:
    """The tools that may be called, and `tool_choice` as chat completions have it."""
    match choice:
        case None | "none" | "auto" | "required":
            return tools, choice
        case {"type": "function", "name": str(name)}:
            return tools, {"type": "function", "function": {"name": name}}
        case {"type": "allowed_tools", "tools": list(allowed)} if all(isinstance(x, dict) for x in allowed):
            names, mode = [each.get("name") for each in allowed], choice.get("mode", "auto")
            if mode in ("auto", "required"):
                return [tool for tool in tools if tool["function"]["name"] in names], mode
    raise invalid(f"'tool_choice' must be {_CHOICE}", "tool_choice")


def _tool(raw: Any, where: str) -> dict[str, Any]:
    kind = raw.get("type") if isinstance(raw, Mapping) else None
    if kind != "function":
        words = "only tools of type function, which the client runs, are served"
        raise invalid(f"{where} is of type {kind!r}: {words}", f"{where}.type")
    if not isinstance(raw.get("strict"), bool | None):
        raise invalid(f"{where}.strict must be true or false", f"{where}.strict")
    named = {name: raw[name] for name in ("name", "description", "parameters") if raw.get(name) is not None}
    return {"type": "function", "function": named}


def _format(body: Params) -> Any:
    """`text.format` as chat completions have it."""
    text = body.get("text")
    if text is None:
        return None
    wanted = text.get("format") if isinstance(text, Mapping) else text
    if wanted is None:
        return None
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if kind not in ("text", "json_object", "json_schema"):
        raise invalid('text.format.type must be "text", "json_object" or "json_schema"', "text.format")
    return {"type": kind, "json_schema": wanted} if kind == "json_schema" else {"type": kind}


def _logprobs(body: Params) -> int | None:
    """Log-probabilities are told if `include` names them."""
    include = body.get("include")
    if include is not None and not (
        isinstance(include, list) and all(isinstance(each, str) for each in include)
    ):
        raise invalid("'include' must be a list of texts", "include")
    top = span(body, "top_logprobs", 0, MAX_LOGPROBS)
    if "message.output_text.logprobs" in (include or ()):
        return top or 0
    if top:
        words = 'top_logprobs is possible only when include holds "message.output_text.logprobs"'
        raise invalid(words, "top_logprobs")
    return None


def _told(body: Params, asked: ChatRequest) -> dict[str, Any]:
    """What a response tells of its own request."""
    metadata, reasoning = body.get("metadata"), body.get("reasoning")
    for name, value in (("metadata", metadata), ("reasoning", reasoning)):
        if value is not None and not isinstance(value, Mapping):
            raise invalid(f"'{name}' must be an object", name)
    text = body.get("text") or {}
    tools = [{"description": None, "parameters": None, "strict": None, **t} for t in body.get("tools") or []]
    return {
        "background": False,
        "instructions": body.get("instructions"),
        "max_output_tokens": body.get("max_output_tokens"),
        "metadata": metadata or {},
        "model": asked.model,
        "parallel_tool_calls": asked.max_calls is None,
        "previous_response_id": previous(body),
        "reasoning": {"effort": None, "summary": None, **(reasoning or {})},
        "store": keeps(body),
        "temperature": asked.sampling.temperature,
        "text": {"format": {"type": "text"}, **text},
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": tools,
        "top_p": asked.sampling.top_p,
        "truncation": "disabled",
        "user": body.get("user"),
    }
