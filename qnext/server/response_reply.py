"""The Responses dialect: an answer or its events to bytes.

Made by `responses.parse`, one for each answer, and read by `gate`. Invariant: items begin and end one after
another, in the order of the answer's parts, and the frames of a stream are numbered from 0 without a gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from .dashscope import logprobs
from .errors import ApiError
from .exchange import Answer, ChatEvent, Choice, Logprob, Part, Usage
from .sse import typed_frame

_TEXT = {"content": "output_text", "reasoning": "reasoning_text"}
_PREFIX = {"content": "msg", "reasoning": "rs", "call": "fc"}


@dataclass(frozen=True)
class ResponseReply:
    """`told` is what the response repeats of its request; `created` is in seconds since 1970."""

    request_id: str
    created: int
    told: dict[str, Any]
    _numbers: count[int] = field(default_factory=count)

    def body(self, answer: Answer) -> dict[str, Any]:
        choice = answer.choices.get(0, Choice())
        short = choice.finish == "length"
        items = [self._item(choice, i, "completed") for i in range(len(choice.parts))]
        if short and items:
            items[-1]["status"] = "incomplete"
        response = self._response("incomplete" if short else "completed", items, answer.usage)
        return response | {"incomplete_details": {"reason": "max_output_tokens"} if short else None}

    def frames(self, event: ChatEvent, answer: Answer) -> bytes:
        choice = answer.choices[event.index]
        told = self._opening() if choice.events == 1 else b""
        last = len(choice.parts) - 1
        text = event.content or event.reasoning
        if event.call is not None or text:
            part = choice.parts[last]
            if part.is_new:
                told += self._close(choice, last - 1) + self._open(choice, last)
            told += self._delta(part, last, event)
        if event.finish:
            told += self._close(choice, last, "incomplete" if event.finish == "length" else "completed")
        return told

    def end(self, answer: Answer) -> bytes:
        response = self.body(answer)
        return self._frame(response["status"], response=response)

    def failure(self, error: ApiError, answer: Answer) -> bytes:
        choice = answer.choices.get(0, Choice())
        items = [self._item(choice, i, "completed") for i in range(len(choice.parts))]
        for item in items[-1:]:
            item["status"] = "incomplete"
        kinds = {429: "rate_limit_exceeded", 400: "invalid_prompt"}
        told = {"code": kinds.get(error.status, "server_error"), "message": error.compat}
        response = self._response("failed", items, answer.usage) | {"error": told}
        return (b"" if answer.events else self._opening()) + self._frame("failed", response=response)

    @property
    def name(self) -> str:
        """The response's id."""
        return f"resp_{self.request_id}"

    def _opening(self) -> bytes:
        response = self._response("in_progress", [], None)
        return self._frame("created", response=response) + self._frame("in_progress", response=response)

    def _open(self, choice: Choice, i: int) -> bytes:
        item = self._item(choice, i, "in_progress", opening=True)
        told = self._frame("output_item.added", output_index=i, item=item)
        if choice.parts[i].call is None:
            part = _content(Part(choice.parts[i].kind))
            told += self._frame("content_part.added", **self._place(choice.parts[i], i), part=part)
        return told

    def _delta(self, part: Part, i: int, event: ChatEvent) -> bytes:
        if part.call is not None:
            place = {"item_id": self._name(part, i), "output_index": i}
            return self._frame("function_call_arguments.delta", **place, delta=part.call.arguments)
        more = {"logprobs": _logprobs(event.logprobs)} if part.kind == "content" else {}
        delta = event.content or event.reasoning
        return self._frame(f"{_TEXT[part.kind]}.delta", **self._place(part, i), delta=delta, **more)

    def _close(self, choice: Choice, i: int, status: str = "completed") -> bytes:
        """The end of an item, if there is one."""
        if i < 0:
            return b""
        part = choice.parts[i]
        if part.call is not None:
            call = {"name": part.call.name, "arguments": part.call.arguments}
            place = {"item_id": self._name(part, i), "output_index": i}
            told = self._frame("function_call_arguments.done", **place, **call)
        else:
            more = {"logprobs": _logprobs(part.logprobs)} if part.kind == "content" else {}
            place = self._place(part, i)
            told = self._frame(f"{_TEXT[part.kind]}.done", **place, text=part.text, **more)
            told += self._frame("content_part.done", **place, part=_content(part))
        return told + self._frame("output_item.done", output_index=i, item=self._item(choice, i, status))

    def _item(self, choice: Choice, i: int, status: str, opening: bool = False) -> dict[str, Any]:
        """An item of the output; one that is `opening` has yet to get what is in it."""
        part = choice.parts[i]
        head = {"id": self._name(part, i), "status": status}
        if part.call is not None:
            call = {"call_id": part.call.id, "name": part.call.name}
            return {
                **head,
                "type": "function_call",
                **call,
                "arguments": "" if opening else part.call.arguments,
            }
        content = [] if opening else [_content(part)]
        if part.kind == "reasoning":
            return {**head, "type": "reasoning", "summary": [], "content": content}
        return {**head, "type": "message", "role": "assistant", "content": content}

    def _name(self, part: Part, i: int) -> str:
        return f"{_PREFIX[part.kind]}_{self.request_id}_{i}"

    def _place(self, part: Part, i: int) -> dict[str, Any]:
        return {"item_id": self._name(part, i), "output_index": i, "content_index": 0}

    def _frame(self, kind: str, **payload: Any) -> bytes:
        return typed_frame(f"response.{kind}", {"sequence_number": next(self._numbers), **payload})

    def _response(self, status: str, items: list[dict[str, Any]], usage: Usage | None) -> dict[str, Any]:
        return {
            "id": self.name,
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            **self.told,
            "output": items,
            "usage": None if usage is None else _usage(usage),
        }


def _content(part: Part) -> dict[str, Any]:
    shown = {"type": _TEXT[part.kind], "text": part.text}
    if part.kind == "reasoning":
        return shown
    return {**shown, "annotations": [], "logprobs": _logprobs(part.logprobs)}


def _logprobs(tokens: Sequence[Logprob]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = logprobs(tokens)["content"]
    return found


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input,
        "input_tokens_details": {"cached_tokens": usage.cached, "cache_write_tokens": 0},
        "output_tokens": usage.output,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.total,
    }
