"""Conversations: from messages to training ids and loss weights, by the checkpoint's own chat template.

Called by the mixture. Invariant: the ids before an answer's first weighted token are exactly the prompt that
the server gives the model for that answer, because both come from `Chat.encode`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from qnext.text.chat import Chat
from qnext.text.messages import Message, Tool
from qnext.text.tokenizer import Tokenizer

from .documents import read_rows

TEMPLATES = Path(__file__).parents[1] / "text" / "templates"


@dataclass(frozen=True)
class Example:
    """One document: its ids and, for each, the loss weight of predicting it (the first is always 0).

    Lists where it was made, int32 and float32 arrays where it came from another process.
    """

    ids: Sequence[int] | NDArray[np.int32]
    weights: Sequence[float] | NDArray[np.float32]
    cuttable: bool = False  # plain text, which may end anywhere


def load_chat(folder: Path, template: str = "") -> Chat:
    """The chat of a checkpoint folder; `template` "instruct" or "thinking" takes that of qnext in place of
    its own.

    Raises ValueError for another name.
    """
    if not template:
        return Chat.from_pretrained(folder)
    source = TEMPLATES / f"{template}.jinja"
    if not source.is_file():
        names = ", ".join(sorted(path.stem for path in TEMPLATES.glob("*.jinja")))
        raise ValueError(f"data.template is {template!r}: use one of {names}, or leave it empty")
    tokenizer = Tokenizer.from_pretrained(folder)
    tokenizer.chat_template = source.read_text(encoding="utf-8")
    end = [tokenizer.control["<|im_end|>"], tokenizer.control["<|endoftext|>"]]
    return Chat(tokenizer, {"eos_token_id": end}, str(folder))


class ConversationEncoder:
    """Encodes conversations for one chat template.

    loss "answers" weights what the model writes: every assistant turn that the template renders as a fresh
    answer, from after the generation prompt to the end token. With a thinking template those are the turns
    after the last user message, since reasoning before it is dropped. loss "all" weights every token but the
    first.
    """

    def __init__(self, chat: Chat, loss: str = "answers") -> None:
        if loss not in ("answers", "all"):
            raise ValueError(f"data.loss is {loss!r}: use 'answers' or 'all'")
        self._chat, self._loss = chat, loss
        probe = [Message("user", "?")]
        asked = chat.encode(probe).ids
        self._header = list(asked[len(chat.encode(probe, add_generation_prompt=False).ids) :])
        self._end = chat.tokenizer.control["<|im_end|>"]

    def encode(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> Example:
        """Ids and weights of a conversation. Raises ValueError when the template refuses it."""
        ids = list(self._chat.encode(messages, list(tools) or None, add_generation_prompt=False).ids)
        if self._loss == "all":
            return Example(ids, [0.0] + [1.0] * (len(ids) - 1))
        weights = [0.0] * len(ids)
        position, header = 0, self._header
        while position < len(ids):
            if ids[position] == header[0] and ids[position : position + len(header)] == header:
                start = position + len(header)
                position = ids.index(self._end, start) if self._end in ids[start:] else len(ids) - 1
                weights[start : position + 1] = [1.0] * (position + 1 - start)
            position += 1
        return Example(ids, weights)


def without_earlier_reasoning(messages: Sequence[Message], rng: Random) -> tuple[Message, ...]:
    """The conversation as half of the clients send it: only the last answer still has its reasoning."""
    if rng.random() < 0.5:
        return tuple(messages)
    bare = [Message(m.role, m.content, None, m.tool_calls, m.tool_call_id) for m in messages[:-1]]
    return (*bare, messages[-1])


class Conversation(NamedTuple):
    """One line of a file; `where` names it in messages."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    where: str


def read_conversations(path: Path) -> list[Conversation]:
    """Conversations of a JSON-lines file in OpenAI's shape: `messages` and, where wanted, `tools`, one a
    line.

    Raises ValueError naming the line that is not one, or a file without any.
    """
    conversations = []
    for _, where, row in read_rows(path):
        if not isinstance(row.get("messages"), list) or not row["messages"]:
            raise ValueError(f"{where}: give an object with a list of messages")
        messages = tuple(
            Message.from_dict(m, f"{where}: messages[{i}]") for i, m in enumerate(row["messages"])
        )
        if messages[-1].role != "assistant":
            raise ValueError(f"{where}: the last message must be the assistant's, it is what is learned")
        conversations.append(Conversation(messages, _tools(row.get("tools"), where), where))
    if not conversations:
        raise ValueError(
            f"{path} holds no conversation: give JSON lines with messages, or leave the part out"
        )
    return conversations


def fitting(
    conversations: Sequence[Conversation], encoder: ConversationEncoder, limit: int, too_long: str
) -> list[Conversation]:
    """Those that can be learned in rows of `limit` tokens, after all of them were encoded once, so that no
    run fails on its last line. Raises ValueError naming the line that the template refuses, that teaches
    nothing, or, where `too_long` is "refuse", that is longer; "drop" leaves such ones out, "cut" keeps them.
    """
    kept = []
    for conversation in conversations:
        where = conversation.where
        try:
            example = encoder.encode(conversation.messages, conversation.tools)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if not any(example.weights):
            raise ValueError(f"{where}: the template shows none of its answers: there is nothing to learn")
        if len(example.ids) > limit and too_long == "refuse":
            raise ValueError(
                f"{where}: {len(example.ids)} tokens, data.max_length is {limit}: raise it, or set "
                f"data.too_long to 'drop' or 'cut'"
            )
        if len(example.ids) <= limit or too_long == "cut":
            kept.append(conversation)
    if not kept:
        raise ValueError(f"every conversation has more than data.max_length ({limit}) tokens: raise it")
    return kept


def _tools(tools: object, where: str) -> tuple[Tool, ...]:
    if tools is None:
        return ()
    if not isinstance(tools, list):
        raise ValueError(f"{where}: tools is {type(tools).__name__}: give a list")
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ValueError(f"{where}: tools[{index}]: give an object with a function that has a name")
    return tuple(tools)
