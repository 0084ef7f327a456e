"""Chat: a checkpoint's words, bundled: tokenizer, template, end-of-answer ids, sampling defaults.

Used by `llm`, `server/service` and `train/conversations`: conversation to prompt, answer to events.
Invariant: it is read-only after loading, so threads may share one; each answer gets its own parser.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .grammar import GrammarSpec
from .grammar_compiler import Grammar, Grammars
from .messages import Message, Tool
from .parser import OutputParser
from .template import ChatTemplate
from .tokenizer import Tokenizer, read_json

_DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens")


@dataclass(frozen=True)
class Prompt:
    """What the engine is asked to continue. `thinking`: it ends inside an open `<think>` section. `raw`: it
    is a plain text to continue, not a conversation. `boundaries`: its lengths where the contents of messages
    begin. `begun`: the partial message it ends with."""

    ids: tuple[int, ...]
    thinking: bool = False
    raw: bool = False
    boundaries: tuple[int, ...] = ()
    begun: str = ""


class Chat:
    """`defaults` holds those of temperature, top_p, top_k, min_p, repetition_penalty and max_new_tokens that
    the checkpoint recommends; `eos_token_ids` the ids that end an answer."""

    def __init__(
        self, tokenizer: Tokenizer, generation: Mapping[str, Any], source: str = "the checkpoint"
    ) -> None:
        """`generation` is the content of generation_config.json; `source` names the checkpoint in errors."""
        self.tokenizer = tokenizer
        self._template = None
        if tokenizer.chat_template is not None:
            self._template = ChatTemplate(
                tokenizer.chat_template, tokenizer.control, tokenizer.special_tokens
            )
        self.eos_token_ids = _eos_ids(tokenizer, generation)
        if not self.eos_token_ids:
            raise ValueError(
                f"{source} names no end-of-answer token: set eos_token_id in its generation_config.json"
            )
        self.defaults = {name: generation[name] for name in _DEFAULTS if generation.get(name) is not None}
        if generation.get("do_sample") is False:
            self.defaults["temperature"] = 0.0

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str]) -> Chat:
        """Load from a checkpoint directory: the tokenizer's files, and generation_config.json (where it is
        missing, config.json's eos_token_id). Raises ValueError naming the file that is missing or unfit."""
        folder = Path(path)
        tokenizer = Tokenizer.from_pretrained(folder)
        for file in (folder / "generation_config.json", folder / "config.json"):
            if file.is_file():
                return cls(tokenizer, read_json(file), str(folder))
        return cls(tokenizer, {}, str(folder))

    @property
    def has_template(self) -> bool:
        """False for a base model: it continues text, but knows no conversations."""
        return self._template is not None

    @cached_property
    def is_thinking(self) -> bool:
        """True if answers begin inside reasoning, because the template opens `<think>` for them."""
        return self.has_template and self.encode([Message("user", "?")]).thinking

    def encode(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        tools: Sequence[Tool] | None = None,
        *,
        enable_thinking: bool | None = None,
        tool_choice: str | Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> Prompt:
        """The prompt for the next answer (or, without `add_generation_prompt`, just the conversation).
        Messages may be given in OpenAI's wire shape. `tool_choice` "none" leaves the tools out. A last
        message that is `partial` is continued. Raises ValueError for what the template or the model cannot
        do."""
        if self._template is None:
            raise ValueError("this checkpoint has no chat template: it continues raw prompts, not messages")
        turns = [
            m if isinstance(m, Message) else Message.from_dict(m, f"messages[{i}]")
            for i, m in enumerate(messages)
        ]
        if not turns:
            raise ValueError("messages is empty: give at least one")
        if any(m.partial for m in turns[:-1]):
            raise ValueError("partial is set on an earlier message: only the last one can be continued")
        flags = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        shown = None if tool_choice == "none" else tools
        rendered = self._template.render(turns, shown, add_generation_prompt, **flags)
        ids = self.tokenizer.encode_trusted(rendered.text, marker=rendered.marker)
        thinking = self._ends_in_reasoning(ids)
        if thinking and turns[-1].partial:
            raise ValueError(
                "partial is set, but this model reasons before it answers: it cannot continue an answer"
            )
        begun = turns[-1].content if turns[-1].partial else ""
        return Prompt(tuple(ids), thinking, boundaries=self._boundaries(ids), begun=begun)

    def encode_text(self, text: str) -> Prompt:
        """A raw prompt, to be continued. Control tokens in it are plain text."""
        return Prompt(tuple(self.tokenizer.encode(text)), raw=True)

    def parser(
        self,
        prompt: Prompt,
        stop: Sequence[str] = (),
        tools: Sequence[Tool] | None = None,
        max_calls: int | None = None,
        stop_token_ids: Sequence[int] = (),
    ) -> OutputParser:
        """A parser for one answer to `prompt`. `stop` ends the answer's text and is not shown, nor is a token
        of `stop_token_ids` (the engine stops there). Calls are looked for if there are `tools`, at most
        `max_calls`."""
        return OutputParser(
            self.tokenizer,
            thinking=prompt.thinking,
            raw=prompt.raw,
            tools=bool(tools) and not prompt.raw,
            stop=[stop] if isinstance(stop, str) else stop,
            hidden=(*self.eos_token_ids, *stop_token_ids),
            max_calls=max_calls,
        )

    def reasoning(self, prompt: Prompt) -> tuple[int, tuple[int, ...]] | None:
        """How the reasoning that `prompt` opened ends: the id of `</think>`, and the ids to write when a
        thinking budget is spent. None if it opened none."""
        if not prompt.thinking:
            return None
        return self.tokenizer.control["</think>"], tuple(self.tokenizer.encode_trusted("\n</think>\n\n"))

    def grammar(self, spec: GrammarSpec, prompt: Prompt) -> Grammar:
        """What an answer to `prompt` must look like, as the engine follows it; a partial message is part of
        the answer's text. Compiling may take a second. Raises GrammarError for what cannot be obeyed."""
        lead = 2 if prompt.thinking else 1 if prompt.begun else 0  # as templates lay out answers and calls
        return self._grammars.compile(spec, begun=prompt.begun, lead=lead)

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self.tokenizer, self.eos_token_ids)

    def _boundaries(self, ids: Sequence[int]) -> tuple[int, ...]:
        """Lengths of `ids` up to the end of each `<|im_start|>role` line, where a token ends there."""
        start, found = self.tokenizer.control.get("<|im_start|>"), []
        for i in (i for i, token in enumerate(ids) if token == start):
            for j, token in enumerate(ids[i + 1 : i + 9], i + 1):
                data = self.tokenizer.token_bytes(token)
                if token == start or b"\n" in data:
                    if data.find(b"\n") == len(data) - 1:
                        found.append(j + 1)
                    break
        return tuple(found)

    def _ends_in_reasoning(self, ids: Sequence[int]) -> bool:
        begin, end = self.tokenizer.control.get("<think>"), self.tokenizer.control.get("</think>")
        last = next((i for i in reversed(ids) if i in (begin, end)), None)
        return last is not None and last == begin and end is not None


def _eos_ids(tokenizer: Tokenizer, generation: Mapping[str, Any]) -> tuple[int, ...]:
    """Those that the generation config names, and the tokenizer's own."""
    named = generation.get("eos_token_id")
    ids = list(named) if isinstance(named, list) else [] if named is None else [named]
    own = tokenizer.control.get(tokenizer.special_tokens.get("eos_token", ""))
    return tuple(dict.fromkeys(ids if own is None else [*ids, own]))
