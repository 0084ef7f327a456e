"""Anthropic's operations: messages, the count of their tokens, the models.

Read by `document`. Invariant: as `anthropic_routes` serves them, and `anthropic` and `anthropic_reply` read
and write them.
"""

from __future__ import annotations

from ..gate import ANTHROPIC_BASE
from ..validation import MAX_STOPS
from . import parameters
from .operation import Operation, event, models
from .schema import (
    JSON_OBJECT,
    Schema,
    Schemas,
    answer,
    const,
    count,
    either,
    flag,
    many,
    nullable,
    ref,
    request,
    text,
    whole,
)

TAG = "Anthropic"
_BOTH = ("", ANTHROPIC_BASE)
_ASKED: Schemas = {
    "system": either(text(), many(ref("MessageTextBlock"))),
    "tools": many(
        request(
            "A function that the client runs.",
            {"name": text(pattern="^[A-Za-z0-9_-]{1,64}$"), "input_schema": JSON_OBJECT},
            {"description": text(), "type": const("custom")},
        )
    ),
    "tool_choice": request(
        "",
        {"type": text("", "auto", "any", "none", "tool")},
        {"name": text("Which tool."), "disable_parallel_tool_use": flag()},
    ),
}
OPERATIONS = [
    Operation(
        "createMessage",
        "post",
        "/v1/messages",
        TAG,
        "Answer a conversation",
        ref("AssistantMessage"),
        "Streams typed events where `stream` is true.",
        _BOTH,
        body=ref("MessageRequest"),
        events="MessageEvent",
        computes=True,
    ),
    Operation(
        "countMessageTokens",
        "post",
        "/v1/messages/count_tokens",
        TAG,
        "How long a prompt is",
        answer("", {"input_tokens": count()}),
        "",
        _BOTH,
        body=request("", {"model": parameters.MODEL, "messages": ref("MessageTurns")}, _ASKED),
        errors=(404,),
    ),
    *models(ANTHROPIC_BASE, TAG, "AnthropicModel", ("",)),
]
_REASON = nullable(text("Null until it ends.", "end_turn", "max_tokens", "stop_sequence", "tool_use"))
_ENDING: Schemas = {"stop_reason": _REASON, "stop_sequence": nullable(text("The text that ended it."))}


def _event(kind: str, fields: Schemas) -> Schema:
    return event(kind, answer("", {"type": const(kind), **fields}))


_DELTA = either(
    answer("", {"type": const("text_delta"), "text": text()}),
    answer("", {"type": const("thinking_delta"), "thinking": text()}),
    answer("", {"type": const("signature_delta"), "signature": text()}),
    answer("", {"type": const("input_json_delta"), "partial_json": text()}),
)
_EVENTS: dict[str, Schemas] = {
    "message_start": {"message": ref("AssistantMessage")},
    "ping": {},
    "content_block_start": {"index": count(), "content_block": ref("MessageBlock")},
    "content_block_delta": {"index": count(), "delta": _DELTA},
    "content_block_stop": {"index": count()},
    "message_delta": {"delta": answer("", _ENDING), "usage": ref("MessageUsage")},
    "message_stop": {},
}
_USED: Schemas = {"id": text(), "name": text(), "input": JSON_OBJECT}
SCHEMAS: dict[str, Schema] = {
    "MessageRequest": request(
        "Unknown parameters are ignored.",
        {
            "model": parameters.MODEL,
            "messages": ref("MessageTurns"),
            "max_tokens": parameters.MAX_ALL_TOKENS,
        },
        {
            **_ASKED,
            "stream": parameters.STREAM,
            "stop_sequences": many(text(minLength=1), maxItems=MAX_STOPS),
            "thinking": request(
                "A thinking model cannot be told not to think; others ignore it.",
                {"type": text("", "enabled", "disabled", "adaptive")},
                {"budget_tokens": whole("", 1, parameters.THINKING)},
            ),
            "output_config": request(
                "",
                {},
                {"format": request("", {"type": const("json_schema"), "schema": JSON_OBJECT})},
            ),
            **parameters.SAMPLING,
            "priority": parameters.PRIORITY,
            "metadata": JSON_OBJECT,
        },
    ),
    "MessageTurns": many(
        request(
            "",
            {
                "role": text("", "user", "assistant", "system"),
                "content": either(text(), many(ref("MessageInputBlock"))),
            },
        ),
        "A conversation; one that ends with the assistant's words is continued.",
        minItems=1,
    ),
    "MessageTextBlock": request("", {"type": const("text"), "text": text()}, {"cache_control": JSON_OBJECT}),
    "MessageInputBlock": either(
        ref("MessageTextBlock"),
        request("", {"type": const("thinking"), "thinking": text()}, {"signature": text()}),
        request("Passed over.", {"type": const("redacted_thinking")}),
        request("", {"type": const("tool_use"), **_USED}),
        request(
            "Before any text of its turn.",
            {"type": const("tool_result"), "tool_use_id": text()},
            {"content": either(text(), many(ref("MessageTextBlock"))), "is_error": flag()},
        ),
    ),
    "MessageBlock": either(
        answer("", {"type": const("text"), "text": text()}),
        answer("", {"type": const("thinking"), "thinking": text(), "signature": text("Opaque.")}),
        answer("", {"type": const("tool_use"), **_USED}),
    ),
    "MessageUsage": answer(
        "What the cache held is counted apart from the rest of the input.",
        {
            "input_tokens": count(),
            "cache_creation_input_tokens": count(),
            "cache_read_input_tokens": count(),
            "output_tokens": count(),
            "output_tokens_details": answer("", {"thinking_tokens": count()}),
        },
    ),
    "AssistantMessage": answer(
        "",
        {
            "id": text(),
            "type": const("message"),
            "role": const("assistant"),
            "model": text("The name that was asked for."),
            "content": many(ref("MessageBlock")),
            **_ENDING,
            "usage": ref("MessageUsage"),
        },
    ),
    "MessageEvent": either(
        *(_event(kind, fields) for kind, fields in _EVENTS.items()), event("error", ref("AnthropicError"))
    ),
    "AnthropicModel": answer(
        "`checkpoint` is what answers to the name.",
        {
            "type": const("model"),
            "id": text(),
            "display_name": text(),
            "created_at": text(format="date-time"),
            "lifecycle": const("active"),
            "checkpoint": text(),
        },
    ),
    "AnthropicModelList": answer(
        "",
        {
            "data": many(ref("AnthropicModel")),
            "has_more": flag(),
            "first_id": nullable(text()),
            "last_id": nullable(text()),
        },
    ),
}
