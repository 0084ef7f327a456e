"""Anthropic's messages dialect: an answer or its events to bytes.

Made by `anthropic.parse`, read by `gate`. Invariant: pure functions and frozen values, no I/O; content blocks
begin and end one after another, in the order of the answer's parts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from .errors import ApiError, anthropic_body
from .exchange import Answer, ChatEvent, Choice, Part, Usage
from .sse import typed_frame


@dataclass(frozen=True)
class MessageReply:
    request_id: str
    model: str

    def body(self, answer: Answer) -> dict[str, Any]:
        ((_, choice),) = answer.ordered()
        blocks = [self._block(part) for part in choice.parts]
        return self._message(blocks, answer.usage) | _ending(choice)

    def frames(self, event: ChatEvent, answer: Answer) -> bytes:
        choice = answer.choices[event.index]
        told = b""
        if choice.events == 1:
            told = typed_frame(
                "message_start", {"message": self._message([], event.usage) | _ending(Choice())}
            )
            told += typed_frame("ping", {})
        last = len(choice.parts) - 1
        text = event.content or event.reasoning
        if event.call is not None or text:
            part = choice.parts[last]
            if part.is_new:
                told += self._close(choice, last - 1) + _frame(
                    "start", last, content_block=self._block(part, True)
                )
            told += _frame("delta", last, delta=_delta(part, text))
        if event.finish:
            told += self._close(choice, last)
            told += typed_frame("message_delta", {"delta": _ending(choice), "usage": _usage(event.usage)})
        return told

    def end(self, answer: Answer) -> bytes:
        return typed_frame("message_stop", {})

    def failure(self, error: ApiError, answer: Answer) -> bytes:
        return typed_frame("error", anthropic_body(error, self.request_id))

    def _close(self, choice: Choice, index: int) -> bytes:
        """The end of a block, if there is one."""
        if index < 0:
            return b""
        signed = b""
        if choice.parts[index].kind == "reasoning":
            delta = {"type": "signature_delta", "signature": self._id}
            signed = _frame("delta", index, delta=delta)
        return signed + _frame("stop", index)

    def _block(self, part: Part, opening: bool = False) -> dict[str, Any]:
        """A content block; one that is `opening` has yet to get what is in it."""
        if part.call is not None:
            given = {} if opening else json.loads(part.call.arguments)
            return {"type": "tool_use", "id": part.call.id, "name": part.call.name, "input": given}
        text = "" if opening else part.text
        if part.kind == "reasoning":
            # Clients drop thoughts that nobody signed. Nothing checks the signature when they come back.
            return {"type": "thinking", "thinking": text, "signature": "" if opening else self._id}
        return {"type": "text", "text": text}

    @property
    def _id(self) -> str:
        return f"msg_{self.request_id}"

    def _message(self, blocks: list[dict[str, Any]], usage: Usage) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": blocks,
            "usage": _usage(usage),
        }


def _ending(choice: Choice) -> dict[str, Any]:
    """Why it ended; nothing yet while it goes on."""
    reasons = {"length": "max_tokens", "tool_calls": "tool_use", "stop": "end_turn", None: None}
    stopped = choice.finish == "stop" and choice.stopped_by is not None
    return {
        "stop_reason": "stop_sequence" if stopped else reasons[choice.finish],
        "stop_sequence": choice.stopped_by if stopped else None,
    }


def _usage(usage: Usage) -> dict[str, Any]:
    """What was found in the cache is counted apart from the rest of the input."""
    return {
        "input_tokens": usage.input - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.output,
        "output_tokens_details": {"thinking_tokens": usage.reasoning},
    }


def _frame(kind: str, index: int, **payload: Any) -> bytes:
    return typed_frame(f"content_block_{kind}", {"index": index, **payload})


def _delta(part: Part, text: str) -> dict[str, Any]:
    if part.call is not None:
        return {"type": "input_json_delta", "partial_json": part.call.arguments}
    if part.kind == "reasoning":
        return {"type": "thinking_delta", "thinking": text}
    return {"type": "text_delta", "text": text}


def model_list(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    ids = [entry["id"] for entry in entries]
    first, last = (ids[0], ids[-1]) if ids else (None, None)
    return {"data": list(entries), "has_more": False, "first_id": first, "last_id": last}


def model_entry(name: str, checkpoint: str, created: int) -> dict[str, Any]:
    """One entry of the model list; `created` is in seconds since 1970, `checkpoint` is what answers."""
    moment = datetime.fromtimestamp(created, UTC).isoformat().replace("+00:00", "Z")
    shown = {"type": "model", "id": name, "display_name": name, "created_at": moment, "lifecycle": "active"}
    return {**shown, "checkpoint": checkpoint}
