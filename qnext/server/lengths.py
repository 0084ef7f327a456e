"""Lengths: how many tokens a prompt may have, and an answer, from what was asked and what there is room for;
and which prompts are short.

Called by `service`. Invariants: an answer never has more tokens than `most` says, reasoning, tags and end
included, so that what is reserved for it is enough; a prompt that is far too long costs no more time than one
that just fits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from qnext.engine.request import SamplingParams
from qnext.text.chat import Chat, Prompt
from qnext.text.tokenizer import Tokenizer

from . import exchange
from .errors import too_long

# What endpoints that only count or show tokens take, where the model's context is shorter.
COUNTED = 2**18


def check_excess(
    prompt: exchange.Prompt, tools: Sequence[dict[str, object]], tokenizer: Tokenizer, context: int
) -> None:
    """Raises ApiError for a prompt that is far too long for `context` tokens, before it is rendered. One that
    is near is for its real length to judge, which cutting texts into pieces does not tell to the token."""
    if isinstance(prompt, exchange.Conversation):
        texts = [message.content for message in prompt.messages]
    else:
        texts = [prompt] if isinstance(prompt, str) else []
    if tools:
        texts.append(json.dumps(tools, ensure_ascii=False))
    if sum(map(len, texts)) <= 2 * context:
        return
    far = context + context // 4
    count = tokenizer.count_up_to(texts, far)
    if count > far:
        raise too_long(count, context - 1, context, at_least=True)


_BRIEF = 4096  # characters: about a millisecond of encoding
_TURN = 64  # what a turn takes beside its text


def longest(sampling: SamplingParams, chat: Chat) -> int | None:
    """Reasoning and answer together: what was asked, else, where nothing was, what the checkpoint
    recommends; None for as much as the engine has room for."""
    if sampling.max_total_tokens is not None:
        return sampling.max_total_tokens
    if sampling.max_tokens is None and "max_new_tokens" in chat.defaults:
        return max(int(chat.defaults["max_new_tokens"]), 1)
    return None


def most(sampling: SamplingParams, chat: Chat, prompt: Prompt, context: int) -> int:
    """The most tokens that an answer to `prompt` can have where prompt and answer have `context` together."""
    room = context - len(prompt.ids)
    whole = min(room, longest(sampling, chat) or room)
    closing = chat.reasoning(prompt)
    if sampling.max_tokens is None or (closing and sampling.thinking_budget is None):
        return whole
    thought = 1 + (sampling.thinking_budget or 0) + len(closing[1]) if closing else 0
    return min(whole, thought + sampling.max_tokens)


def brief(request: exchange.ChatRequest) -> bool:
    """Whether its prompts are encoded sooner than a thread could be asked to, and be heard."""
    if request.grammar is not None or request.tools:
        return False
    return sum(map(_size, request.prompts)) <= _BRIEF


def _size(prompt: exchange.Prompt) -> int:
    if not isinstance(prompt, exchange.Conversation):
        return _TURN + len(prompt)
    texts = [text for turn in prompt.messages for text in (turn.content, turn.reasoning or "")]
    texts += [call.arguments for turn in prompt.messages for call in turn.tool_calls]
    return _TURN * len(prompt.messages) + sum(map(len, texts))
