"""The native DashScope operations: generation, the tokenizer, the models.

Read by `document`. Invariant: as `native_routes` serves them and `dashscope` reads and writes them.
"""

from __future__ import annotations

from ..dashscope import MAX_PROMPTS
from ..gate import NATIVE_BASE
from ..native_routes import GENERATION
from . import parameters
from .operation import Operation, event
from .parameters import FACTS
from .schema import Schema, answer, const, count, either, flag, many, ref, request, text, whole

TAG = "DashScope"
_INPUT = request(
    "Messages, a prompt, or both (the prompt is then the last turn).",
    {},
    {
        "messages": parameters.MESSAGES,
        "prompt": either(
            text(),
            many(text(), "Several prompts, each answered by itself.", minItems=1, maxItems=MAX_PROMPTS),
        ),
        "history": many(
            request("", {"user": text(), "bot": text()}), "Earlier turns, as once they were sent."
        ),
    },
)
_PARAMETERS = request(
    "Unknown ones are ignored.",
    {},
    {
        "result_format": text(
            "`text`: the answer is `output.text`. Left out: text where there are neither thoughts nor tools.",
            "text",
            "message",
        ),
        "incremental_output": flag(
            "Frames hold the new piece, not all so far. Left out: true for thinking models only, which refuse"
            " false; without streaming true is refused."
        ),
        **parameters.CHAT,
    },
)
_FINISH = text('"null" until it ends.', "null", "stop", "length", "tool_calls")
_USAGE = {"input_tokens": count(), "output_tokens": count(), "total_tokens": count()}
_SSE = {
    "X-DashScope-SSE": text("`enable` streams the answer, and so does `Accept: text/event-stream`."),
}
_GENERATION_WORDS = """
Streams where `X-DashScope-SSE: enable` or `Accept: text/event-stream` says so. Each frame is
`id:N`, `event:result`, `:HTTP_STATUS/200`, `data:{…}`, without spaces after the colons; there is no
`[DONE]`. Lines that begin with a colon keep the connection alive. A failure after the first frame is a last
frame with `event:error`, `status:500` and an error as its data.
""".strip()


def _generation(name: str, path: str, prefixes: tuple[str, ...], words: str) -> Operation:
    return Operation(
        name,
        "post",
        path,
        TAG,
        "Generate text",
        ref("Generation"),
        words,
        prefixes,
        headers=_SSE,
        body=ref("GenerationRequest"),
        events="GenerationEvent",
        computes=True,
    )


OPERATIONS = [
    _generation("generate", NATIVE_BASE + GENERATION, ("",), _GENERATION_WORDS),
    _generation(
        "generateAtCompatibleBase",
        "/v1" + GENERATION,
        ("", "/compatible-mode"),
        "The same, for native SDKs that were given a compatible base.",
    ),
    Operation(
        "countNativeTokens",
        "post",
        NATIVE_BASE + "/tokenizer",
        TAG,
        "Tokens of a prompt or of messages",
        answer(
            "",
            {
                "output": answer("", {"token_ids": many(count()), "tokens": many(text())}),
                "usage": answer("", {"input_tokens": count()}),
                "request_id": text(),
            },
        ),
        body=request("", {"model": parameters.MODEL, "input": _INPUT}, {"parameters": request("", {})}),
        errors=(404,),
    ),
    Operation(
        "listNativeModels",
        "get",
        NATIVE_BASE + "/models",
        TAG,
        "The models, a page at a time",
        ref("NativeModels"),
        query={
            "page_no": whole("", 1, 10**6, default=1),
            "page_size": whole("", 1, 10**6, default=10),
            "model": text("This one only."),
        },
    ),
    Operation(
        "getNativeModel",
        "get",
        NATIVE_BASE + "/models/{name}",
        TAG,
        "One model",
        answer("", {"output": ref("NativeModel"), "request_id": text()}),
    ),
]
SCHEMAS: dict[str, Schema] = {
    "GenerationRequest": request(
        "", {"model": parameters.MODEL, "input": _INPUT}, {"parameters": _PARAMETERS}
    ),
    "Generation": answer(
        "An answer, or what a frame tells of it.",
        {
            "output": ref("GenerationOutput"),
            "usage": answer(
                "Up to now, in a frame.",
                _USAGE | {"prompt_tokens_details": answer("", {"cached_tokens": count()})},
                {"output_tokens_details": answer("", {"reasoning_tokens": count()})},
            ),
            "request_id": text(),
        },
    ),
    "GenerationOutput": answer(
        "`choices`, or in the text format `text` and `finish_reason`; both where there are several prompts.",
        {},
        {
            "text": text(),
            "text_delta": text("The new piece once more (streams of pieces in the text format)."),
            "finish_reason": _FINISH,
            "choices": many(ref("GenerationChoice")),
            **FACTS,
        },
    ),
    "GenerationChoice": answer(
        "",
        {
            "index": count(),
            "finish_reason": _FINISH,
            "message": answer(
                "",
                {"role": const("assistant"), "content": text()},
                {"reasoning_content": text(), "tool_calls": many(ref("ToolCall"))},
            ),
        },
        {"logprobs": ref("ChoiceLogprobs"), **FACTS},
    ),
    "GenerationEvent": either(
        event("result", ref("Generation"), id=text("From 1 on.")),
        event("error", ref("NativeError"), id=text(), status=text("The HTTP status that it would have had.")),
    ),
    "NativeModels": answer(
        "",
        {
            "output": answer(
                "",
                {
                    "total": count(),
                    "page_no": count(),
                    "page_size": count(),
                    "models": many(ref("NativeModel")),
                },
            ),
            "request_id": text(),
        },
    ),
    "NativeModel": answer(
        "`checkpoint` is what answers to the name.",
        {name: text() for name in ("model", "provider", "source", "checkpoint")} | {"opensource": flag()},
    ),
}
