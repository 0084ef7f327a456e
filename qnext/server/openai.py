"""The OpenAI-compatible chat dialect: a chat body to a `ChatRequest`, an answer or its events to its bytes.

Called by `app`. Invariant: pure functions and frozen values, no I/O; a delta carries reasoning or content,
never both, and later fragments never repeat a name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .conversation import conversation
from .dashscope import logprobs, tool_calls
from .errors import ApiError, compat_body, invalid
from .exchange import Answer, ChatEvent, ChatRequest, Choice, Rules, Usage
from .facts import written
from .sse import DONE, compat_frame
from .validation import Params, chat_request, flag, logprobs_asked

NO_MODEL = "you must provide a model parameter"


def parse(
    body: Mapping[str, Any], rules: Rules, *, request_id: str, created: int
) -> tuple[ChatRequest, ChatReply]:
    """Read a chat body; `created` is in seconds since 1970. Raises ApiError."""
    messages = body.get("messages")
    if messages is None:
        raise invalid('Either "prompt" or "messages" must exist and cannot both be none', "messages")
    prompts = (conversation(messages, rules),)
    stream, model = bool(flag(body, "stream")), body["model"]
    asked = chat_request(model, prompts, body, rules, stream=stream, logprobs=logprobs_asked(body))
    return asked, ChatReply(request_id, model, created, usage_wanted(body), rules.thinking)


def usage_wanted(body: Params) -> bool:
    """`stream_options.include_usage`."""
    options = body.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, Mapping):
        raise invalid("'stream_options' must be an object", "stream_options")
    return bool(flag(options, "include_usage"))


def usage_counts(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.total,
        "prompt_tokens_details": {"cached_tokens": usage.cached},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


@dataclass(frozen=True)
class ChatReply:
    """`include_usage`: a last chunk tells the usage. `thinking`: `reasoning_content` is always there."""

    request_id: str
    model: str
    created: int
    include_usage: bool = False
    thinking: bool = False

    def body(self, answer: Answer) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "finish_reason": choice.finish,
                "logprobs": logprobs(choice.logprobs) if choice.logprobs else None,
                "message": self._message(choice),
                **written(choice.facts),
            }
            for index, choice in answer.ordered()
        ]
        return self._envelope("chat.completion", choices) | {"usage": usage_counts(answer.usage)}

    def frames(self, event: ChatEvent, answer: Answer) -> bytes:
        choice = answer.choices[event.index]
        opening = b""
        if choice.events == 1:
            opening = self._chunk(event, {"role": "assistant", "content": ""})
        if event.finish:
            return opening + self._chunk(event, {}, event.finish)
        if event.call is not None:
            piece = Choice(calls=[event.call])
            return opening + self._chunk(event, {"tool_calls": tool_calls(piece, len(choice.calls) - 1)})
        if event.reasoning:
            return opening + self._chunk(event, {"reasoning_content": event.reasoning, "content": None})
        return opening + self._chunk(event, {"content": event.content}, told=True)

    def end(self, answer: Answer) -> bytes:
        if not self.include_usage:
            return DONE
        last = self._envelope("chat.completion.chunk", []) | {"usage": usage_counts(answer.usage)}
        return compat_frame(last) + DONE

    def failure(self, error: ApiError, answer: Answer) -> bytes:
        return compat_frame(compat_body(error, self.request_id))

    def _message(self, choice: Choice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.content}
        if self.thinking or choice.reasoning:
            message["reasoning_content"] = choice.reasoning
        if choice.calls:
            message["tool_calls"] = tool_calls(choice)
        return message

    def _chunk(
        self, event: ChatEvent, delta: dict[str, Any], finish: str | None = None, told: bool = False
    ) -> bytes:
        """`told`: this chunk tells the log-probabilities of the event."""
        told_logprobs = logprobs(event.logprobs) if told and event.logprobs else None
        choice = {"index": event.index, "delta": delta, "logprobs": told_logprobs, "finish_reason": finish}
        if finish:
            choice |= written(event.facts)
        chunk = self._envelope("chat.completion.chunk", [choice])
        if self.include_usage:
            chunk["usage"] = None
        return compat_frame(chunk)

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": f"chatcmpl-{self.request_id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": None,
            "choices": choices,
        }


def model_entry(name: str, checkpoint: str, created: int) -> dict[str, Any]:
    """One entry of the model list; `checkpoint` tells which model answers to the name."""
    return {"id": name, "object": "model", "created": created, "owned_by": "qnext", "checkpoint": checkpoint}


def model_list(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return {"object": "list", "data": list(entries)}
