"""The OpenAI-compatible completions dialect: raw prompts to a `ChatRequest`, answers to its bytes.

Called by `app`. Invariant: pure functions and frozen values, no I/O; no template ever touches a prompt, and
choice `i * n + j` continues prompt `i`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .errors import ApiError, compat_body, invalid
from .exchange import Answer, ChatEvent, ChatRequest, Echo, Logprob, Prompt, Rules
from .facts import written
from .openai import usage_counts, usage_wanted
from .sse import DONE, compat_frame
from .validation import Params, chat_request, flag, integer, span, token_ids

MAX_PROMPTS = 256


def parse(
    body: Mapping[str, Any], rules: Rules, *, request_id: str, created: int
) -> tuple[ChatRequest, CompletionReply]:
    """Read a completions body; `created` is in seconds since 1970. Raises ApiError."""
    _refuse_unsupported(body)
    prompts = _prompts(body.get("prompt"), rules)
    logprobs, echo = span(body, "logprobs", 0, 5), bool(flag(body, "echo"))
    stream, model = bool(flag(body, "stream")), body["model"]
    # A raw continuation neither reasons nor calls tools, whatever the model does in a conversation.
    plain = replace(rules, thinking=False)
    params = {name: value for name, value in body.items() if name not in ("tools", "tool_choice")}
    silent = echo and params.get("max_tokens") == 0 and params["max_tokens"] is not False
    if silent:
        del params["max_tokens"]
    asked = chat_request(model, prompts, params, plain, stream=stream, logprobs=logprobs)
    if echo:
        sampling = replace(asked.sampling, prompt_logprobs=logprobs)
        asked = replace(asked, sampling=sampling, echo=True, silent=silent)
    return asked, CompletionReply(request_id, model, created, usage_wanted(body), logprobs is not None)


def _refuse_unsupported(body: Params) -> None:
    if body.get("suffix"):
        raise invalid("suffix is not supported: this model only continues its prompt, leave it out", "suffix")
    best_of = integer(body, "best_of", 1, 4, "Range of best_of should be [1, 4]")
    if best_of is not None and best_of != (body.get("n") or 1):
        raise invalid("best_of is not supported: leave it out, and use n for several answers", "best_of")


def _prompts(raw: Any, rules: Rules) -> tuple[Prompt, ...]:
    """A text, texts, token ids, or lists of token ids."""
    if raw is None:
        raise invalid('Either "prompt" or "messages" must exist and cannot both be none', "prompt")
    if isinstance(raw, str):
        return (raw,)
    if token_ids(raw, rules):
        return (tuple(raw),)
    if isinstance(raw, list) and 1 <= len(raw) <= MAX_PROMPTS:
        if all(isinstance(each, str) for each in raw):
            return tuple(raw)
        if all(token_ids(each, rules) for each in raw):
            return tuple(tuple(each) for each in raw)
    words = f"a text, token ids of the model, or a list of 1 to {MAX_PROMPTS} of either"
    raise invalid(f"'prompt' must be {words}", "prompt")


@dataclass(frozen=True)
class CompletionReply:
    """`logprobs`: they are told, those of an echoed prompt before the answer's."""

    request_id: str
    model: str
    created: int
    include_usage: bool = False
    logprobs: bool = False

    def body(self, answer: Answer) -> dict[str, Any]:
        choices = [
            self._choice(
                index, echo.text + choice.content, [*echo.logprobs, *choice.logprobs], 0, choice.finish
            )
            | written(choice.facts)
            for index, choice in answer.ordered()
            for echo in [choice.echo or Echo("")]
        ]
        return self._envelope(choices) | {"usage": usage_counts(answer.usage)}

    def frames(self, event: ChatEvent, answer: Answer) -> bytes:
        choice = answer.choices[event.index]
        if event.echo is not None:
            piece = self._choice(event.index, event.echo.text, event.echo.logprobs, 0, None)
        else:
            echoed = len(choice.echo.text) if choice.echo is not None else 0
            offset = echoed + len(choice.content) - len(event.content)
            piece = self._choice(event.index, event.content, event.logprobs, offset, event.finish)
        chunk = self._envelope([piece | written(event.facts)])
        if self.include_usage:
            chunk["usage"] = None
        return compat_frame(chunk)

    def end(self, answer: Answer) -> bytes:
        if not self.include_usage:
            return DONE
        return compat_frame(self._envelope([]) | {"usage": usage_counts(answer.usage)}) + DONE

    def failure(self, error: ApiError, answer: Answer) -> bytes:
        return compat_frame(compat_body(error, self.request_id))

    def _choice(
        self, index: int, text: str, tokens: Sequence[Logprob], offset: int, finish: str | None
    ) -> dict[str, Any]:
        told = _logprobs(tokens, offset) if self.logprobs else None
        return {"index": index, "text": text, "logprobs": told, "finish_reason": finish}

    def _envelope(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"cmpl-{self.request_id}",
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "system_fingerprint": None,
            "choices": choices,
        }


def _logprobs(tokens: Sequence[Logprob], offset: int) -> dict[str, Any]:
    """`offset` is where the first token's text begins in the answer, in characters."""
    offsets = []
    for each in tokens:
        offsets.append(offset)
        offset += len(each.token)
    return {
        "tokens": [each.token for each in tokens],
        "token_logprobs": [each.logprob for each in tokens],
        "top_logprobs": [_top(each) for each in tokens],
        "text_offset": offsets,
    }


def _top(token: Logprob) -> dict[str, float | None] | None:
    """The likeliest by text, best first; of tokens that show the same text the best counts."""
    if token.logprob is None:
        return None
    found: dict[str, float | None] = {}
    for other in token.top:
        found.setdefault(other.token, other.logprob)
    return found
