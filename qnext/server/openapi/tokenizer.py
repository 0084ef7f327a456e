"""vLLM's operations of the tokenizer.

Read by `document`. Invariant: as `vllm_routes` serves them, and `vllm` reads and writes them.
"""

from __future__ import annotations

from . import parameters
from .operation import Operation
from .schema import JSON_OBJECT, answer, count, flag, many, nullable, ref, request, text

TAG = "Tokenizer"
_BASES = ("", "/v1", "/compatible-mode/v1")
_MODEL = text("A model's name. Left out: the first model that knows conversations.")
OPERATIONS = [
    Operation(
        "tokenize",
        "post",
        "/tokenize",
        TAG,
        "Tokens of a text or of messages",
        answer(
            "",
            {
                "count": count(),
                "max_model_len": count("The model's context."),
                "tokens": many(count()),
                "token_strs": nullable(many(text())),
            },
        ),
        "Control tokens in a text count as such.",
        _BASES,
        body=request(
            "`prompt` or `messages`.",
            {},
            {
                "model": _MODEL,
                "prompt": text(),
                "messages": parameters.MESSAGES,
                "tools": many(ref("Tool")),
                "add_generation_prompt": flag("End where the next answer begins.", default=True),
                "continue_final_message": flag("End inside the last message.", default=False),
                "return_token_strs": flag("", default=False),
                "add_special_tokens": flag("These models add none."),
            },
        ),
        errors=(404,),
    ),
    Operation(
        "detokenize",
        "post",
        "/detokenize",
        TAG,
        "Text of tokens",
        answer("", {"prompt": text()}),
        "",
        _BASES,
        body=request("", {"tokens": many(count())}, {"model": _MODEL}),
        errors=(404,),
    ),
    Operation(
        "getTokenizerInfo",
        "get",
        "/tokenizer_info",
        TAG,
        "Special tokens, template and context of a model",
        answer(
            "",
            {
                "tokenizer_class": text(),
                **{f"{each}_token": nullable(text()) for each in ("bos", "eos", "pad", "unk")},
                "added_tokens_decoder": JSON_OBJECT,
                "chat_template": nullable(text()),
                "model_max_length": count(),
                "vocab_size": count(),
            },
            {"additional_special_tokens": many(text())},
        ),
        "",
        _BASES,
        query={"model": _MODEL},
        errors=(404,),
    ),
]
