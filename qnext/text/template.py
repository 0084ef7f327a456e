"""The chat template of a checkpoint: renders messages and tools to the text the model was trained on.

Used by `chat` alone. Invariant: in a rendered text, a control token is unbroken only where the template
itself wrote it. All that comes from outside (contents, reasoning, calls, tool definitions, flags) is guarded
first: a marker, a character that occurs nowhere else, is put wherever a control token could begin or end.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .messages import Message, Tool, json_object

# Markers are taken from the Cuneiform block on: printable, so that Python's repr leaves them alone when a
# template prints a list, without case, and next to never part of a text.
_MARKERS = range(0x12000, 0x110000)


@dataclass(frozen=True)
class Rendered:
    """A rendered text. Remove `marker` after splitting at control tokens, not before."""

    text: str
    marker: str


class ChatTemplate:
    """`source` is Jinja, run in a sandbox with the settings and functions that transformers gives
    templates."""

    def __init__(self, source: str, control: Collection[str], special_tokens: Mapping[str, str]) -> None:
        """`control` holds the control tokens' texts; `special_tokens` (such as "eos_token") are given to the
        template. Raises ValueError if the source is not valid Jinja."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _raise, "strftime_now": _now, **special_tokens}
        try:
            tree = environment.parse(source)
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise ValueError(f"the chat template is not valid Jinja: {error}") from None
        self._source = source
        self._control = control
        self._edges = {text[0] for text in control} | {text[-1] for text in control}
        # A word inside a control token (`think`) would complete one if the template wrote `<` and `>` around
        # it. Words the template itself spells it must be able to look up and compare: those stay as they are.
        self._spelled = {node.value for node in tree.find_all(nodes.Const)}
        self._spelled |= {node.attr for node in tree.find_all(nodes.Getattr)}

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] | None = None,
        add_generation_prompt: bool = True,
        **flags: Any,
    ) -> Rendered:
        """Render a conversation. A last message that is partial is rendered as the beginning of the answer.
        Raises ValueError with the template's own message if it refuses the conversation."""
        partial = bool(messages) and messages[-1].partial
        begun = messages[-1].content if partial else ""
        turns = [_as_dict(message) for message in (messages[:-1] if partial else messages)]
        try:
            used = set(self._source + json.dumps([turns, tools, flags, begun], ensure_ascii=False))
            marker = next(chr(code) for code in _MARKERS if chr(code) not in used)
            guard = _Guard(marker, self._edges, self._control, self._spelled)
            text = self._template.render(
                {name: guard.value(flag) for name, flag in flags.items()},
                # The role is one of four known words and not a content.
                messages=[guard.value(turn) | {"role": turn["role"]} for turn in turns],
                tools=guard.value(tools) if tools else None,
                add_generation_prompt=add_generation_prompt or partial,
            )
            text += guard.value(begun)
        except Exception as error:  # foreign code: whatever it raises concerns this conversation
            raise ValueError(f"the chat template refuses this conversation: {error}") from error
        return Rendered(text, marker)


class _Guard:
    """Puts `marker` into strings from outside, so that no control token can begin, end or be completed
    there."""

    def __init__(self, marker: str, edges: set[str], control: Collection[str], spelled: set[Any]) -> None:
        self._marker = marker
        self._table = str.maketrans({edge: marker + edge + marker for edge in edges})
        self._control, self._spelled = control, spelled

    def value(self, value: Any) -> Any:
        """`value` (as JSON knows values) with all its strings guarded, keys included."""
        if isinstance(value, str):
            return self._string(value)
        if isinstance(value, Mapping):
            return {self._string(str(key)): self.value(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.value(item) for item in value]
        return value

    def _string(self, text: str) -> str:
        core = text.strip()
        if core and core not in self._spelled and any(core in control[1:-1] for control in self._control):
            text = text.replace(core, self._marker + core, 1)
        return text.translate(self._table)


def _as_dict(message: Message) -> dict[str, Any]:
    """A message as templates know it: OpenAI's shape, arguments as an object wherever they are one."""
    content, reasoning = message.content, message.reasoning
    if message.role == "assistant" and reasoning is None and "</think>" in content:
        # Templates look for the tags themselves, but once guarded a content no longer shows any.
        before, _, content = content.rpartition("</think>")
        reasoning = before.partition("</think>")[0].rpartition("<think>")[2].strip("\n")
        content = content.lstrip("\n")
    turn: dict[str, Any] = {"role": message.role, "content": content}
    if reasoning is not None:
        turn["reasoning_content"] = reasoning
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "type": "function",
                "id": call.id,
                "function": {"name": call.name, "arguments": _arguments(call.arguments)},
            }
            for call in message.tool_calls
        ]
    return turn


def _arguments(text: str) -> dict[str, Any] | str:
    parsed = json_object(text)
    return text if parsed is None else parsed


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if ensure_ascii:
        raise TemplateError("tojson(ensure_ascii=True) is not supported: leave the argument out")
    return json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)
