"""The operations of responses: create, find, delete, list the input, count.

Read by `document`. Invariant: as `response_routes` serves them, and `responses` and `response_reply` read and
write them.
"""

from __future__ import annotations

from ..response_routes import FIRST_BASE
from ..responses import MAX_LOGPROBS
from . import parameters
from .operation import COMPAT_PREFIXES, Operation, event
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
    number,
    ref,
    request,
    text,
    whole,
)

TAG = "OpenAI Responses"
PREFIXES = (*COMPAT_PREFIXES, FIRST_BASE.removesuffix("/v1"))
_PATH = "/v1/responses"
_ONE = _PATH + "/{name}"
_STREAM = "Streams typed, numbered events where `stream` is true; the last one holds the whole response."


def _operation(
    name: str, method: str, path: str, summary: str, told: Schema | None, words: str = "", **more: object
) -> Operation:
    return Operation(name, method, path, TAG, summary, told, words, PREFIXES, **more)  # type: ignore[arg-type]


OPERATIONS = [
    _operation(
        "createResponse",
        "post",
        _PATH,
        "Answer, and store the answer",
        ref("Response"),
        _STREAM,
        body=ref("ResponseRequest"),
        events="ResponseEvent",
        computes=True,
    ),
    _operation(
        "countResponseTokens",
        "post",
        _PATH + "/input_tokens",
        "How long a prompt is",
        answer("", {"object": const("response.input_tokens"), "input_tokens": count()}),
        body=request(
            "",
            {"model": parameters.MODEL, "input": ref("ResponseInput")},
            {
                "instructions": text(),
                "previous_response_id": text(),
                "tools": many(ref("ResponseTool")),
                "tool_choice": ref("ResponseToolChoice"),
            },
        ),
        errors=(404,),
    ),
    _operation("getResponse", "get", _ONE, "A stored response", ref("Response")),
    _operation(
        "deleteResponse",
        "delete",
        _ONE,
        "Delete a stored response",
        answer("", {"id": text(), "object": const("response"), "deleted": const(True)}),
    ),
    _operation(
        "listResponseInput",
        "get",
        _ONE + "/input_items",
        "The items before a response's output",
        answer(
            "",
            {
                "object": const("list"),
                "data": many(ref("ResponseItem")),
                "first_id": nullable(text()),
                "last_id": nullable(text()),
                "has_more": flag(),
            },
        ),
        query={
            "limit": whole("", 1, 100, default=20),
            "after": text("The last id of the page before."),
            "order": text("", "asc", "desc", default="desc"),
        },
    ),
    _operation(
        "cancelResponse",
        "post",
        _ONE + "/cancel",
        "Refused: no response runs in the background",
        None,
        errors=(400,),
    ),
]
_STATUS = text("", "in_progress", "completed", "incomplete", "failed")
_TOLD: Schemas = {
    "background": const(False),
    "instructions": nullable(text()),
    "max_output_tokens": nullable(whole()),
    "metadata": JSON_OBJECT,
    "model": text("The name that was asked for."),
    "parallel_tool_calls": flag(),
    "previous_response_id": nullable(text()),
    "reasoning": JSON_OBJECT,
    "store": flag(),
    "temperature": number(),
    "text": JSON_OBJECT,
    "tool_choice": either(text(), JSON_OBJECT),
    "tools": many(JSON_OBJECT),
    "top_p": number(),
    "truncation": const("disabled"),
    "user": nullable(text()),
}
_ASKED = ("priority", "enable_thinking", "thinking_budget", "parallel_tool_calls")
_PLACE: dict[str, Schema] = {"item_id": text(), "output_index": count()}
_INSIDE = _PLACE | {"content_index": count()}
_TOKENS = {"logprobs": many(ref("TokenLogprob"))}


def _event(kind: str, fields: Schemas) -> Schema:
    name = f"response.{kind}"
    return event(name, answer("", {"type": const(name), "sequence_number": count("From 0 on."), **fields}))


_EVENTS: dict[str, Schemas] = {
    **{
        kind: {"response": ref("Response")}
        for kind in ("created", "in_progress", "completed", "incomplete", "failed")
    },
    **{
        kind: {"output_index": count(), "item": ref("ResponseItem")}
        for kind in ("output_item.added", "output_item.done")
    },
    **{kind: _INSIDE | {"part": ref("ResponsePart")} for kind in ("content_part.added", "content_part.done")},
    "output_text.delta": _INSIDE | {"delta": text()} | _TOKENS,
    "output_text.done": _INSIDE | {"text": text()} | _TOKENS,
    "reasoning_text.delta": _INSIDE | {"delta": text()},
    "reasoning_text.done": _INSIDE | {"text": text()},
    "function_call_arguments.delta": _PLACE | {"delta": text()},
    "function_call_arguments.done": _PLACE | {"name": text(), "arguments": text()},
}
_ITEM: Schemas = {"id": text(), "status": _STATUS}
_CALLED: Schemas = {"call_id": text(), "name": text(), "arguments": text("A JSON object, as text.")}
_GIVEN_TEXT = either(text(), many(request("", {"type": text(), "text": text()})))
SCHEMAS: dict[str, Schema] = {
    "ResponseRequest": request(
        "Refused: `background`, `conversation`, `prompt`. Unknown parameters are ignored.",
        {"model": parameters.MODEL, "input": ref("ResponseInput")},
        {
            "instructions": text("A system's turn, for this response alone."),
            "previous_response_id": text("The stored response that this one goes on after."),
            "store": flag("", default=True),
            "stream": parameters.STREAM,
            "max_output_tokens": parameters.MAX_ALL_TOKENS,
            **parameters.SAMPLING,
            "stop": parameters.STOP,
            "tools": many(ref("ResponseTool")),
            "tool_choice": ref("ResponseToolChoice"),
            "text": request("", {}, {"format": ref("TextFormat")}),
            "include": many(text(), "`message.output_text.logprobs` asks for log-probabilities."),
            "top_logprobs": whole("And so many of the likeliest.", 0, MAX_LOGPROBS),
            **{name: parameters.CHAT[name] for name in _ASKED},
            "metadata": JSON_OBJECT,
            "reasoning": JSON_OBJECT,
            "user": text(),
        },
    ),
    "ResponseInput": either(
        text(minLength=1), many(ref("ResponseInputItem"), minItems=1), words="A text, or items."
    ),
    "ResponseInputItem": either(
        request(
            "A turn.",
            {"role": text("", "user", "assistant", "system", "developer"), "content": _GIVEN_TEXT},
            {"type": const("message"), "id": text(), "status": text()},
        ),
        request("", {"type": const("function_call"), **_CALLED}, {"id": text(), "status": text()}),
        request(
            "What came of a call.",
            {"type": const("function_call_output"), "call_id": text(), "output": _GIVEN_TEXT},
            {"id": text(), "status": text()},
        ),
        request(
            "",
            {"type": const("reasoning")},
            {"summary": many(JSON_OBJECT), "content": many(JSON_OBJECT), "id": text(), "status": text()},
        ),
    ),
    "ResponseTool": request(
        "A function that the client runs.",
        {"type": const("function"), "name": text(pattern="^[A-Za-z0-9_-]{1,64}$")},
        {"description": text(), "parameters": JSON_OBJECT, "strict": flag()},
    ),
    "ResponseToolChoice": either(
        text("", "none", "auto", "required"),
        request("", {"type": const("function"), "name": text()}),
        request(
            "",
            {"type": const("allowed_tools"), "tools": many(JSON_OBJECT)},
            {"mode": text("", "auto", "required")},
        ),
    ),
    "TextFormat": either(
        request("", {"type": const("text")}),
        request("The word json must be in the input.", {"type": const("json_object")}),
        request(
            "", {"type": const("json_schema"), "schema": JSON_OBJECT}, {"name": text(), "strict": flag()}
        ),
    ),
    "Response": answer(
        "",
        {
            "id": text(),
            "object": const("response"),
            "created_at": count("Seconds since 1970."),
            "status": _STATUS,
            "error": nullable(answer("", {"code": text(), "message": text()})),
            "incomplete_details": nullable(answer("", {"reason": const("max_output_tokens")})),
            **_TOLD,
            "output": many(ref("ResponseItem")),
            "usage": nullable(ref("ResponseUsage")),
        },
    ),
    "ResponseUsage": answer(
        "",
        {
            "input_tokens": count(),
            "input_tokens_details": answer("", {"cached_tokens": count(), "cache_write_tokens": count()}),
            "output_tokens": count(),
            "output_tokens_details": answer("", {"reasoning_tokens": count()}),
            "total_tokens": count(),
        },
    ),
    "ResponseItem": either(
        answer(
            "",
            {
                **_ITEM,
                "type": const("message"),
                "role": text("", "user", "assistant", "system", "developer"),
                "content": many(ref("ResponsePart")),
            },
        ),
        answer("", {**_ITEM, "type": const("function_call"), **_CALLED}),
        answer(
            "",
            {
                **_ITEM,
                "type": const("function_call_output"),
                "call_id": text(),
                "output": many(ref("ResponsePart")),
            },
        ),
        answer(
            "",
            {
                **_ITEM,
                "type": const("reasoning"),
                "summary": many(ref("ResponsePart")),
                "content": many(ref("ResponsePart")),
            },
        ),
    ),
    "ResponsePart": answer(
        "",
        {
            "type": text("", "input_text", "output_text", "reasoning_text", "summary_text"),
            "text": text(),
        },
        {"annotations": many(JSON_OBJECT, maxItems=0), **_TOKENS},
    ),
    "ResponseEvent": either(*(_event(kind, fields) for kind, fields in _EVENTS.items())),
}
