"""Lengths: how many tokens an answer may have at most, from what was asked and what there is room for.

Called by `service`. Invariant: an answer never has more tokens than `most` says, reasoning, tags and end
included, so that what is reserved for it is enough.
"""

from __future__ import annotations

from qnext.engine.request import SamplingParams
from qnext.text.chat import Chat, Prompt


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
