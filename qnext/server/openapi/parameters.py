"""Parameters that the dialects share, as `validation` reads them: sampling, lengths, stops, tools, the form
of the answer.

Called by the tables of the text endpoints. Invariant: ranges and limits are those of `validation`; a test
sends what lies just inside and just outside of each.
"""

from __future__ import annotations

from qnext.engine.request import MAX_SEED

from ..validation import MAX_CONTEXT, MAX_PRIORITY, MAX_STOPS
from .schema import (
    JSON_OBJECT,
    Schema,
    Setting,
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

_OWN = "Left out: what the checkpoint recommends"
OUTPUT = Setting(("max_output_tokens",))
THINKING = Setting(("max_thinking_tokens",))
WHOLE = Setting(("max_output_tokens", "max_thinking_tokens"))

SAMPLING: dict[str, Schema] = {
    "temperature": number(f"0 always takes the likeliest token. {_OWN}.", minimum=0, exclusiveMaximum=2),
    "top_p": number(f"The likeliest tokens of this share together. {_OWN}.", exclusiveMinimum=0, maximum=1),
    "top_k": whole(f"So many of the likeliest tokens; 0, null or more than 100 is off. {_OWN}.", 0),
    "min_p": number("No token below this share of the likeliest one's.", minimum=0, maximum=1, default=0),
    "repetition_penalty": number("Divides the scores of tokens that were there.", exclusiveMinimum=0),
    "presence_penalty": number(
        "Taken from the scores of tokens that were written. Left out: the server's setting.",
        minimum=-2,
        maximum=2,
    ),
    "frequency_penalty": number(
        "Taken from a token's score each time it was written.", minimum=-2, maximum=2, default=0
    ),
    "seed": whole("The same seed and parameters give the same text. Left out: a random one.", 0, MAX_SEED),
}
PRIORITY = whole("Of the requests that wait, lower ones go first.", -MAX_PRIORITY, MAX_PRIORITY, default=0)
EXTRAS: dict[str, Schema] = {
    "priority": PRIORITY,
    "max_context_length": whole("The most tokens that prompt and answer may have together.", 1, MAX_CONTEXT),
    "return_facts": flag("Tell times and counts in each choice, as `facts`.", default=False),
    "return_routed_experts": flag("Tell the experts of each token as well.", default=False),
}
STOP = either(
    text(),
    many(text(), maxItems=MAX_STOPS),
    many(whole("", 0), "Token ids.", minItems=1, maxItems=MAX_STOPS),
    many(many(whole("", 0), minItems=1), "Sequences of token ids.", minItems=1, maxItems=MAX_STOPS),
    words="What ends the answer, itself not told: texts, or token ids, never both.",
)
MAX_TOKENS = whole("The most tokens of the answer, reasoning aside.", 1, OUTPUT)
MAX_ALL_TOKENS = whole("The most tokens of reasoning and answer together.", 1, WHOLE)
LENGTHS: dict[str, Schema] = {"max_tokens": MAX_TOKENS, "max_completion_tokens": MAX_ALL_TOKENS}
THINK: dict[str, Schema] = {
    "enable_thinking": flag("A thinking model always thinks and refuses false; others ignore it."),
    "thinking_budget": whole("The most tokens of reasoning (thinking models only).", 1, THINKING),
}
N = whole("So many answers; 1 where tools are on offer.", 1, 4, default=1)
PARALLEL = flag("Whether one answer may hold several calls.", default=False)
TOOLS: dict[str, Schema] = {
    "tools": many(ref("Tool"), "Functions that the model may call and the client runs."),
    "tool_choice": either(
        text("", "none", "auto", "required"),
        request(
            "This function, for certain.",
            {"type": const("function"), "function": request("", {"name": text()})},
        ),
        words="Whether the model may or must call.",
    ),
    "parallel_tool_calls": PARALLEL,
}
FORM: dict[str, Schema] = {
    "response_format": ref("ResponseFormat"),
    "structured_outputs": request(
        "vLLM's forms: one of these.",
        {},
        {
            "json": either(JSON_OBJECT, text(), words="A JSON schema, or its text."),
            "json_object": flag("Any JSON object."),
            "regex": text("A regular expression."),
            "choice": many(text(), "One of these texts."),
        },
    ),
}
LOGPROBS: dict[str, Schema] = {
    "logprobs": flag("Tell the log-probability of each token.", default=False),
    "top_logprobs": whole("And so many of the likeliest; needs `logprobs`.", 0, 5, default=0),
}
CHAT: dict[str, Schema] = {
    **LENGTHS,
    **SAMPLING,
    "stop": STOP,
    "n": N,
    **LOGPROBS,
    **TOOLS,
    **FORM,
    **THINK,
    **EXTRAS,
}
MODEL = text("A model's name: `GET /v1/models` lists them.")
STREAM = flag("Send the answer as it is written.", default=False)
STREAM_OPTIONS = request("", {}, {"include_usage": flag("A last chunk tells the usage.", default=False)})
MESSAGES = many(ref("Message"), "The conversation, a user's turn in it; base models take none.", minItems=1)

_CALL = {"name": text(), "arguments": text("A JSON object, as text.")}
_TOKEN = {
    "token": text(),
    "bytes": many(whole("", 0, 255)),
    "logprob": nullable(number("-9999 or more.")),
}
SCHEMAS: dict[str, Schema] = {
    "Message": request(
        "A turn of a conversation.",
        {"role": text("", "system", "developer", "user", "assistant", "tool", "function")},
        {
            "content": either(text(), many(ref("TextPart")), words="Text; null beside calls."),
            "reasoning_content": text("What the assistant thought; shown to the model only in tool loops."),
            "tool_calls": many(
                request(
                    "",
                    {"function": request("", _CALL)},
                    {"id": text(), "type": const("function"), "index": count()},
                ),
                "The assistant's calls.",
            ),
            "tool_call_id": text("Which call a tool's turn answers."),
            "partial": flag("The assistant's last turn is a beginning to be continued.", default=False),
            "name": text(),
        },
    ),
    "TextPart": request("", {"text": text()}, {"type": const("text"), "cache_control": JSON_OBJECT}),
    "Tool": request(
        "A function that the client runs.",
        {
            "function": request(
                "",
                {"name": text(pattern="^[A-Za-z0-9_-]{1,64}$")},
                {"description": text(), "parameters": JSON_OBJECT | {"description": "A JSON schema."}},
            )
        },
        {"type": const("function")},
    ),
    "ResponseFormat": either(
        request("", {"type": const("text")}),
        request("The word json must be in the messages.", {"type": const("json_object")}),
        request(
            "",
            {
                "type": const("json_schema"),
                "json_schema": request("", {"schema": JSON_OBJECT}, {"name": text(), "strict": flag()}),
            },
        ),
        words="What the answer must look like.",
    ),
    "ToolCall": answer(
        "A call. Native fragments after the first have an empty id and no name.",
        {
            "index": count(),
            "id": text(),
            "type": const("function"),
            "function": answer("", {"arguments": _CALL["arguments"]}, {"name": _CALL["name"]}),
        },
    ),
    "TokenAlternative": answer("", _TOKEN),
    "TokenLogprob": answer("", _TOKEN | {"top_logprobs": many(ref("TokenAlternative"))}),
    "ChoiceLogprobs": answer("", {"content": many(ref("TokenLogprob"))}),
    "Facts": answer(
        "How the engine came to the answer.",
        {
            **{
                name: number("", minimum=0) for name in ("queue_seconds", "prefill_seconds", "decode_seconds")
            },
            **{f"{name}_tokens": count() for name in ("cached", "computed", "drafted", "accepted")},
            "preemptions": count(),
        },
    ),
}
FACTS: dict[str, Schema] = {
    "facts": ref("Facts"),
    "routed_experts": many(many(many(count())), "[tokens, layers, k]"),
}
