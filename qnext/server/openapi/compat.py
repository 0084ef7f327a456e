"""The OpenAI-compatible operations: chat completions, completions, the models.

Read by `document`. Invariant: as `compat_routes` serves them, and `openai` and `openai_completions` read and
write them.
"""

from __future__ import annotations

from ..openai_completions import MAX_PROMPTS
from . import parameters
from .operation import COMPAT_PREFIXES, Operation, ending, event, models
from .parameters import FACTS
from .schema import (
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

TAG = "OpenAI"
_STREAM = (
    "Streams `data: {…}` where `stream` is true, until `data: [DONE]`. A failure is told in a last chunk."
)
_USAGE_WORDS = (
    "In streams with `include_usage`: null, and in the last chunk, which has no choices, the usage."
)
_FINISH = nullable(text("", "stop", "length", "tool_calls"))
_LOGPROBS = nullable(ref("ChoiceLogprobs"))
_CALLS = many(ref("ToolCall"))
_IDS = many(whole("", 0), minItems=1)

OPERATIONS = [
    Operation(
        "createChatCompletion",
        "post",
        "/v1/chat/completions",
        TAG,
        "Answer a conversation",
        ref("ChatCompletion"),
        _STREAM,
        COMPAT_PREFIXES,
        body=ref("ChatCompletionRequest"),
        events="ChatCompletionEvent",
        computes=True,
    ),
    Operation(
        "createCompletion",
        "post",
        "/v1/completions",
        TAG,
        "Continue a text",
        ref("Completion"),
        f"The prompt goes to the model as it is, without a template. {_STREAM}",
        COMPAT_PREFIXES,
        body=ref("CompletionRequest"),
        events="CompletionEvent",
        computes=True,
    ),
    *models("", TAG, "Model", COMPAT_PREFIXES),
]


def _envelope(kind: str, choice: Schema) -> Schemas:
    return {
        "id": text(),
        "object": const(kind),
        "created": count("Seconds since 1970."),
        "model": text("The name that was asked for."),
        "system_fingerprint": {"type": "null"},
        "choices": many(choice),
    }


def _events(kind: str) -> Schema:
    return either(event(None, ref(kind)), event(None, ref("CompatError")), ending("[DONE]"))


_RAW = ("n", "stop", "response_format", "structured_outputs")
SCHEMAS: dict[str, Schema] = {
    "ChatCompletionRequest": request(
        "Unknown parameters are ignored.",
        {"model": parameters.MODEL, "messages": parameters.MESSAGES},
        {"stream": parameters.STREAM, "stream_options": parameters.STREAM_OPTIONS, **parameters.CHAT},
    ),
    "ChatCompletion": answer(
        "",
        {
            **_envelope("chat.completion", ref("ChatChoice")),
            "usage": ref("ChatUsage"),
        },
    ),
    "ChatChoice": answer(
        "",
        {
            "index": count(),
            "finish_reason": _FINISH,
            "logprobs": _LOGPROBS,
            "message": answer(
                "",
                {"role": const("assistant"), "content": text()},
                {"reasoning_content": text(), "tool_calls": _CALLS},
            ),
        },
        FACTS,
    ),
    "ChatUsage": answer(
        "",
        {
            "prompt_tokens": count(),
            "completion_tokens": count("Reasoning and tags included."),
            "total_tokens": count(),
            "prompt_tokens_details": answer("", {"cached_tokens": count()}),
            "completion_tokens_details": answer("", {"reasoning_tokens": count()}),
        },
    ),
    "ChatCompletionChunk": answer(
        "",
        _envelope("chat.completion.chunk", ref("ChatChunkChoice")),
        {"usage": nullable(ref("ChatUsage")) | {"description": _USAGE_WORDS}},
    ),
    "ChatChunkChoice": answer(
        "`delta` is what is new: the role, then reasoning, content or a whole call; nothing at the end.",
        {
            "index": count(),
            "delta": answer(
                "",
                {},
                {
                    "role": const("assistant"),
                    "content": nullable(text()),
                    "reasoning_content": text(),
                    "tool_calls": _CALLS,
                },
            ),
            "logprobs": _LOGPROBS,
            "finish_reason": _FINISH,
        },
        FACTS,
    ),
    "ChatCompletionEvent": _events("ChatCompletionChunk"),
    "CompletionRequest": request(
        "Unknown parameters are ignored.",
        {
            "model": parameters.MODEL,
            "prompt": either(
                text(),
                _IDS,
                many(text(), minItems=1, maxItems=MAX_PROMPTS),
                many(_IDS, minItems=1, maxItems=MAX_PROMPTS),
                words="A text, token ids, or several of either.",
            ),
        },
        {
            "stream": parameters.STREAM,
            "stream_options": parameters.STREAM_OPTIONS,
            "max_tokens": whole(
                "The most tokens of the answer; 0 only with `echo`, to score a text.", 0, parameters.OUTPUT
            ),
            "max_completion_tokens": whole("The same, as chats call it.", 1, parameters.OUTPUT),
            "logprobs": whole("Tell log-probabilities, and so many of the likeliest.", 0, 5),
            "echo": flag("Tell the prompt before the answer.", default=False),
            "best_of": whole("As large as `n`, or left out.", 1, 4),
            **{name: parameters.CHAT[name] for name in _RAW},
            **parameters.SAMPLING,
            **parameters.EXTRAS,
        },
    ),
    "Completion": answer(
        "An answer, or a chunk of its stream.",
        _envelope("text_completion", ref("CompletionChoice")),
        {"usage": nullable(ref("ChatUsage")) | {"description": _USAGE_WORDS}},
    ),
    "CompletionChoice": answer(
        "Choice `i * n + j` continues prompt `i`.",
        {
            "index": count(),
            "text": text(),
            "logprobs": nullable(ref("CompletionLogprobs")),
            "finish_reason": _FINISH,
        },
        FACTS,
    ),
    "CompletionLogprobs": answer(
        "Each token's text, log-probability (null for a prompt's first), the likeliest, and its place.",
        {
            "tokens": many(text()),
            "token_logprobs": many(nullable(number())),
            "top_logprobs": many(
                {"type": ["object", "null"], "additionalProperties": nullable(number())},
            ),
            "text_offset": many(count()),
        },
    ),
    "CompletionEvent": _events("Completion"),
    "Model": answer(
        "`checkpoint` is what answers to the name.",
        {
            "id": text(),
            "object": const("model"),
            "created": count(),
            "owned_by": text(),
            "checkpoint": text(),
        },
    ),
    "ModelList": answer("", {"object": const("list"), "data": many(ref("Model"))}),
}
