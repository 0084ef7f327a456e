"""The output parser: an answer's token ids to reasoning, content, tool calls and the finish.

Made by `chat`, fed by `llm` and `server/service`. Invariant: it goes token by token and looks at control
tokens by id, never by text, so any cutting of the ids into `feed` calls gives the same events (neighbours
joined), and no text can pretend to be a tag.

    REASON --</think>--> TEXT --<tool_call>--> CALL --</tool_call>--> TEXT
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Callable, Collection, Iterable

from .detokenizer import Detokenizer
from .events import ContentDelta, Event, Finish, FinishReason, ReasoningDelta, ToolCallDelta, joined
from .messages import ToolCall, json_object
from .stops import StopMatcher
from .tokenizer import Tokenizer


def new_call_id() -> str:
    """A fresh id for a tool call: "call_" and 22 hex digits."""
    return "call_" + secrets.token_hex(11)


class OutputParser:
    """Read by its caller: `stopped` turns True when a stop string or `max_calls` is reached (the caller then
    aborts the engine's stream); `reasoning_tokens` counts the tokens inside reasoning, tags excluded; `calls`
    the calls."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        thinking: bool = False,
        raw: bool = False,
        tools: bool = False,
        stop: Iterable[str] = (),
        hidden: Collection[int] = (),
        max_calls: int | None = None,
        new_id: Callable[[], str] = new_call_id,
    ) -> None:
        """`thinking`: the prompt ends inside reasoning. `raw`: a continuation, not a turn; tags of reasoning
        are plain text. `tools`: calls are looked for; otherwise their tags are plain text. `hidden`: ids
        besides the control tokens that show nothing, such as those the engine stops at."""
        self._tokenizer = tokenizer
        think, think_end, call, call_end = (
            tokenizer.control.get(tag) for tag in ("<think>", "</think>", "<tool_call>", "</tool_call>")
        )
        self._think, self._think_end = (None, None) if raw else (think, think_end)
        self._call_begin, self._call_end = (call, call_end) if tools else (None, None)
        tags_as_text = {think, think_end} if raw else set()
        self._call_tags = {call, call_end}
        self._hidden = (
            (tokenizer.control_ids | set(hidden)) - tags_as_text - (set() if tools else self._call_tags)
        )
        self._max_calls, self._new_id = max_calls, new_id
        self._stops = StopMatcher(stop)
        self._detokenizer = Detokenizer(tokenizer)
        self._reasoning = thinking
        self._call: list[int] | None = None  # the ids of a call that has begun
        self._untouched = not thinking  # no text yet: `<think>` may still open reasoning
        self._newlines_to_skip = sys.maxsize if thinking else 0
        self._held = ""  # text of this section that is not emitted yet
        self._ids: list[int] = []  # tokens of this section that belong to no delta yet
        self._after_call = False  # nothing was emitted since the last call
        self._events: list[Event] = []
        self.stopped = False
        self.reasoning_tokens = 0
        self.calls = 0

    @property
    def stopped_by(self) -> str | None:
        """The stop string that ended the answer, if one did."""
        return self._stops.found if self._stops.matched else None

    def feed(self, ids: Iterable[int]) -> list[Event]:
        """Take the next ids of the answer; once `stopped`, they are ignored."""
        for token_id in ids:
            if self.stopped:
                break
            self._take(token_id)
        return self._drain()

    def finish(self, reason: FinishReason) -> list[Event]:
        """The last events, given the engine's `reason`. An answer with calls ends in "tool_calls" where it
        would end in "stop"; an answer that was stopped here did not end by `reason`."""
        if not self.stopped and self._call is not None:
            self._end_call(complete=reason == "stop")
        if not self.stopped:
            self._push(self._detokenizer.flush())
        if not self.stopped and not self._reasoning:
            self._held += self._stops.flush()
            self._emit_rest()
        if self.stopped or reason == "stop":
            reason = "tool_calls" if self.calls else "stop"
        self._events.append(Finish(reason))
        return self._drain()

    def _take(self, token_id: int) -> None:
        if self._call is not None:
            if token_id not in (self._call_begin, self._call_end):
                self._call.append(token_id)
                return
            if token_id == self._call_end:
                self._call.append(token_id)
            self._end_call(complete=True)
            if token_id == self._call_begin:
                self._call = [token_id]
        elif self._reasoning and token_id == self._think_end:
            self._end_reasoning()
        elif self._untouched and token_id == self._think:
            self._untouched, self._reasoning, self._newlines_to_skip = False, True, sys.maxsize
        elif not self._reasoning and token_id == self._call_begin:
            self._untouched, self._newlines_to_skip = False, 0
            self._push(self._detokenizer.flush())
            self._call = [token_id]
        elif token_id not in self._hidden or (self._reasoning and token_id in self._call_tags):
            self._take_text(token_id)

    def _take_text(self, token_id: int) -> None:
        self._untouched = False
        self.reasoning_tokens += self._reasoning
        text = self._detokenizer.feed(token_id)
        newlines = min(len(text) - len(text.lstrip("\n")), self._newlines_to_skip)
        if newlines and newlines == len(text):
            self._newlines_to_skip -= newlines
            return
        if text:
            self._newlines_to_skip = 0
        self._ids.append(token_id)
        self._push(text[newlines:])

    def _push(self, text: str) -> None:
        """Add text to the section and emit what is certain to belong to it."""
        if self._reasoning:
            self._held += text
            self._emit(len(self._held.rstrip("\n")))
            return
        self._held += self._stops.feed(text)
        self.stopped = self._stops.matched
        if self.stopped:
            self._emit_rest()
        else:  # white space may be the layout before a call: with tools, it waits for what follows
            self._emit(len(self._held) if self._call_begin is None else len(self._held.rstrip()))

    def _emit(self, length: int) -> None:
        """Emit so much of the held text, with all tokens that belong to no delta yet."""
        if not length:
            return
        text, self._held = self._held[:length], self._held[length:]
        ids, self._ids = tuple(self._ids), []
        kind = ReasoningDelta if self._reasoning else ContentDelta
        self._after_call = False
        self._events.append(kind(text, ids))

    def _emit_rest(self) -> None:
        """Emit all content that is held; white space alone after a call is layout."""
        if not (self._after_call and self._held.isspace()):
            self._emit(len(self._held))

    def _end_reasoning(self) -> None:
        self._push(self._detokenizer.flush())
        self._reasoning, self._newlines_to_skip = False, 2
        self._held, self._ids = "", []

    def _end_call(self, complete: bool) -> None:
        """The ids of a call are all here: emit it, or, if they spell none, show them as content."""
        assert self._call is not None
        ids, self._call = self._call, None
        tags = (self._call_begin, self._call_end)
        shown = [i for i in ids if i in tags or i not in self._hidden]
        call = None
        if complete:
            call = self._parse_call(
                self._tokenizer.decode((i for i in shown if i not in tags), skip_control=False)
            )
        if call is None:
            self._ids += shown
            self._push(self._tokenizer.decode(shown, skip_control=False))
            return
        self._held += self._stops.flush()
        self._emit(len(self._held.rstrip()))
        self._held, self._ids = "", []
        self._events.append(ToolCallDelta(call, self.calls, tuple(ids)))
        self._after_call = True
        self.calls += 1
        self.stopped = self.calls == self._max_calls

    def _parse_call(self, text: str) -> ToolCall | None:
        body = json_object(text) or {}
        name, arguments = body.get("name"), body.get("arguments", {})
        if isinstance(arguments, str):
            spelled, arguments = arguments, json_object(arguments)
        else:
            spelled = json.dumps(arguments, ensure_ascii=False)
        if not isinstance(name, str) or not name or not isinstance(arguments, dict):
            return None
        try:
            (name + spelled).encode()
        except UnicodeEncodeError:  # a lone surrogate, written as an escape: no such text can be sent on
            return None
        return ToolCall(self._new_id(), name, spelled)

    def _drain(self) -> list[Event]:
        events, self._events = self._events, []
        return joined(events)
