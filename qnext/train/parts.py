"""Parts: what a data source is made of, as a recipe's `[data]` table says it, and how each is opened.

Opened by the mixture, or by the worker processes that work ahead of it, which is why torch is not imported
here. Invariant: a part's example number N depends on the spec, the tokenizer, the seed and N alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal, TypeAlias, TypeVar

from qnext.synthetic.chat import DRILLS, FAMILIES, compose
from qnext.synthetic.dialogue import Setting
from qnext.text.chat import Chat

from .conversations import (
    ConversationEncoder,
    Example,
    fitting,
    load_chat,
    read_conversations,
    without_earlier_reasoning,
)
from .documents import READERS, read_documents, read_told_stories

T = TypeVar("T")
Make: TypeAlias = Callable[[int], Example]  # a part's example by its number: a pure function
Told: TypeAlias = Callable[[Path, bool], list[str]]  # the stories of a folder, those held out or the others


@dataclass(frozen=True)
class Part:
    """One part of the mixture; `weight` is its share of the tokens.

    kind: "chat" (made conversations; `family` names one family or drill, empty for all families; `path` a
    folder with the stories to tell, or empty), "conversations" (JSON lines of messages), or a kind of
    document ("stories", "lower_stories", "passages", "pairs"). `path` is relative to the data root. heldout:
    the share kept from training.
    """

    kind: str
    weight: float
    path: str = ""
    family: str = ""
    heldout: bool = False

    def __post_init__(self) -> None:
        kinds = ("chat", "conversations", *READERS)
        if self.kind not in kinds:
            raise ValueError(f"kind {self.kind!r} is unknown: use one of {', '.join(kinds)}")
        if not self.weight > 0:
            raise ValueError(f"weight is {self.weight}: give a share above 0, or leave the part out")
        if self.kind != "chat" and not self.path:
            raise ValueError(f"path is missing: a part of kind {self.kind!r} is read from a file")
        families = ("", *FAMILIES, *DRILLS)
        if self.family not in families:
            raise ValueError(f"family {self.family!r} is unknown: use one of {', '.join(families[1:])}")


@dataclass(frozen=True)
class DataSpec:
    """A data source: parts, the row length in tokens, and how conversations are written.

    template: "" for the checkpoint's own chat template, "instruct" or "thinking" for qnext's. loss:
    "answers", or "all" to weight every token of a conversation. max_length: documents and made conversations
    are cut there; too_long: what becomes of a file's conversations, "refuse", "drop" or "cut". workers:
    processes that make examples ahead of the trainer, with the same rows; 0 makes them in its own.
    """

    parts: tuple[Part, ...]
    root: str = "data"
    tokens_per_batch: int = 4096
    max_length: int = 1024
    template: str = ""
    loss: str = "answers"
    too_long: Literal["refuse", "drop", "cut"] = "refuse"
    workers: int = 0

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("parts is empty: give at least one")
        if not 2 <= self.max_length <= self.tokens_per_batch:
            raise ValueError(
                f"max_length is {self.max_length}: give 2 to tokens_per_batch ({self.tokens_per_batch})"
            )
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}: give the number of processes, or 0 for none")


def open_parts(spec: DataSpec, tokenizer_dir: Path, seed: int) -> list[Make]:
    """What makes the examples of each part. Raises ValueError naming the part or file at fault."""
    chat = load_chat(tokenizer_dir, spec.template)
    told = functools.cache(read_told_stories)  # parts that tell of the same folder read it once
    return [_open_part(part, spec, chat, f"{seed}/{i}", told) for i, part in enumerate(spec.parts)]


def _open_part(part: Part, spec: DataSpec, chat: Chat, seed: str, told: Told) -> Make:
    path = Path(spec.root) / part.path
    if part.kind in ("chat", "conversations") and not chat.has_template:
        raise ValueError("the checkpoint has no chat template: set data.template to 'instruct' or 'thinking'")
    if part.kind == "chat":
        stories = told(path, part.heldout) if part.path else []
        return _synthetic(part, stories, chat, spec.loss, seed)
    if part.kind == "conversations":
        encoder = ConversationEncoder(chat, spec.loss)
        kept = fitting(read_conversations(path), encoder, spec.max_length, spec.too_long)
        return _shuffled(kept, lambda each: encoder.encode(each.messages, each.tools), seed)
    end = chat.tokenizer.control["<|endoftext|>"]

    def encode(text: str) -> Example:
        ids = [*chat.tokenizer.encode(text), end]
        return Example(ids, [0.0] + [1.0] * (len(ids) - 1), cuttable=True)

    return _shuffled(read_documents(part.kind, path, part.heldout), encode, seed)


def _shuffled(entries: Sequence[T], encode: Callable[[T], Example], seed: str) -> Make:
    """Entry `count` of an endless reading: each pass goes through all entries in an order of its own."""
    order: list[int] = []
    shuffled_pass = -1

    def make(count: int) -> Example:
        nonlocal order, shuffled_pass
        passes, place = divmod(count, len(entries))
        if passes != shuffled_pass:
            order, shuffled_pass = list(range(len(entries))), passes
            Random(f"{seed}/{passes}").shuffle(order)
        return encode(entries[order[place]])

    return make


def _synthetic(part: Part, stories: list[str], chat: Chat, loss: str, seed: str) -> Make:
    encoder = ConversationEncoder(chat, loss)
    setting = Setting(part.heldout, chat.is_thinking, stories)

    def make(count: int) -> Example:
        rng = Random(f"{seed}/{count}")
        dialogue = compose(rng, setting, part.family)
        messages = dialogue.messages
        if chat.is_thinking:
            messages = without_earlier_reasoning(messages, rng)
        return encoder.encode(messages, dialogue.tools)

    return make
