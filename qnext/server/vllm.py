"""vLLM's tokenizer dialect: bodies to prompts and ids, ids and facts of a tokenizer to bodies.

Called by `vllm_routes`. Invariant: pure functions, no I/O. Control tokens in a text to tokenize count as
such, as with vLLM: nothing read here reaches a model, and evaluation harnesses need the ids of what they
rendered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qnext.text.tokenizer import Tokenizer

from .conversation import conversation
from .errors import invalid
from .exchange import Conversation, Rules
from .validation import flag, token_ids, tools_on_offer

_NO_TEXT = 'Either "prompt" (a text) or "messages" must be given'


@dataclass(frozen=True)
class TokenizeRequest:
    """A text, or a conversation with `tools`; with `open_turn` it ends where the next answer begins. `texts`:
    the tokens' texts are wanted too."""

    prompt: Conversation | str
    tools: tuple[dict[str, Any], ...] = ()
    open_turn: bool = True
    texts: bool = False


def parse_tokenize(body: Mapping[str, Any], rules: Rules) -> TokenizeRequest:
    """Read a body of /tokenize. Raises ApiError."""
    flag(body, "add_special_tokens")  # these models add none
    texts = bool(flag(body, "return_token_strs"))
    prompt, messages = body.get("prompt"), body.get("messages")
    if messages is None:
        if not isinstance(prompt, str):
            raise invalid(_NO_TEXT, "prompt")
        return TokenizeRequest(prompt, texts=texts)
    if body.get("chat_template") is not None:
        raise invalid("chat_template is the checkpoint's own here: leave it out", "chat_template")
    opened, continued = flag(body, "add_generation_prompt"), bool(flag(body, "continue_final_message"))
    if opened and continued:
        words = "add_generation_prompt and continue_final_message exclude each other"
        raise invalid(words, "continue_final_message")
    if continued and isinstance(messages, list) and messages and isinstance(messages[-1], Mapping):
        messages = [*messages[:-1], {**messages[-1], "partial": True}]
    talk = conversation(messages, rules)
    return TokenizeRequest(talk, tools_on_offer(body), opened is not False, texts)


def parse_detokenize(body: Mapping[str, Any], rules: Rules) -> list[int]:
    """Read a body of /detokenize: ids, possibly none. Raises ApiError."""
    ids = body.get("tokens")
    if ids != [] and not token_ids(ids, rules):
        raise invalid(f"'tokens' must be a list of token ids from 0 to {rules.vocab_size - 1}", "tokens")
    assert isinstance(ids, list)
    return ids


def tokenized(ids: Sequence[int], tokenizer: Tokenizer, texts: bool, longest: int) -> dict[str, Any]:
    """The answer of /tokenize; `longest` is the model's context in tokens."""
    spelled = [tokenizer.token_bytes(token).decode("utf-8", "replace") for token in ids] if texts else None
    return {"count": len(ids), "max_model_len": longest, "tokens": list(ids), "token_strs": spelled}


def tokenizer_info(tokenizer: Tokenizer, longest: int) -> dict[str, Any]:
    """The answer of /tokenizer_info, named as in a checkpoint's tokenizer_config.json."""
    named = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"))
    control = {str(token): {"content": text} for text, token in tokenizer.control.items()}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **named,
        **tokenizer.special_tokens,
        "added_tokens_decoder": control,
        "chat_template": tokenizer.chat_template,
        "model_max_length": longest,
        "vocab_size": tokenizer.vocab_size,
    }
