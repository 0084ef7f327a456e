"""Mixture: the data source of a training run, parts mixed by weight and packed into rows of one length.

Opened by the trainer with the `[data]` table of its recipe. Invariant: the row after N rows depends on the
spec, the tokenizer, the seed and N alone, whether or not the run was stopped in between.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Literal, TypeVar

import torch

from qnext.synthetic.chat import DRILLS, FAMILIES, compose
from qnext.synthetic.dialogue import Setting
from qnext.text.chat import Chat

from .batch import Batch, Source
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
_WAITING = 8  # examples kept for the next row when they do not fit into this one
_DRAWS = 100  # until one is found that teaches something


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
    are cut there; too_long: what becomes of a file's conversations, "refuse", "drop" or "cut".
    """

    parts: tuple[Part, ...]
    root: str = "data"
    tokens_per_batch: int = 4096
    max_length: int = 1024
    template: str = ""
    loss: str = "answers"
    too_long: Literal["refuse", "drop", "cut"] = "refuse"

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("parts is empty: give at least one")
        if not 2 <= self.max_length <= self.tokens_per_batch:
            raise ValueError(
                f"max_length is {self.max_length}: give 2 to tokens_per_batch ({self.tokens_per_batch})"
            )


def open_source(data_spec: DataSpec, tokenizer_dir: Path, seed: int) -> Source:
    """The source that a spec describes, at its beginning. Raises ValueError naming the part or file at
    fault."""
    chat = load_chat(tokenizer_dir, data_spec.template)
    streams = [_open_part(part, data_spec, chat, f"{seed}/{i}") for i, part in enumerate(data_spec.parts)]
    return _Mixture(data_spec, streams, chat.tokenizer.control["<|endoftext|>"])


class _Stream:
    """Examples by number: `make(count)` is a pure function, so the count is the whole state."""

    def __init__(self, make: Callable[[int], Example]) -> None:
        self._make = make
        self.count = 0

    def next(self) -> Example:
        self.count += 1
        return self._make(self.count - 1)


def _open_part(part: Part, spec: DataSpec, chat: Chat, seed: str) -> _Stream:
    path = Path(spec.root) / part.path
    if part.kind in ("chat", "conversations") and not chat.has_template:
        raise ValueError("the checkpoint has no chat template: set data.template to 'instruct' or 'thinking'")
    if part.kind == "chat":
        return _Stream(_synthetic(part, path, chat, spec.loss, seed))
    if part.kind == "conversations":
        encoder = ConversationEncoder(chat, spec.loss)
        told = fitting(read_conversations(path), encoder, spec.max_length, spec.too_long)
        return _Stream(_shuffled(told, lambda each: encoder.encode(each.messages, each.tools), seed))
    end = chat.tokenizer.control["<|endoftext|>"]

    def encode(text: str) -> Example:
        ids = [*chat.tokenizer.encode(text), end]
        return Example(ids, [0.0] + [1.0] * (len(ids) - 1), cuttable=True)

    return _Stream(_shuffled(read_documents(part.kind, path, part.heldout), encode, seed))


def _shuffled(entries: Sequence[T], encode: Callable[[T], Example], seed: str) -> Callable[[int], Example]:
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


def _synthetic(part: Part, path: Path, chat: Chat, loss: str, seed: str) -> Callable[[int], Example]:
    stories = read_told_stories(path, part.heldout) if part.path else []
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


class _Mixture:
    """Draws from the part that is furthest behind its share and lays examples end to end in a row."""

    def __init__(self, spec: DataSpec, streams: list[_Stream], pad: int) -> None:
        self._spec, self._streams, self._pad = spec, streams, pad
        self._served = [0] * len(streams)
        self._waiting: list[Example] = []

    def next(self) -> Batch:
        space = self._spec.tokens_per_batch
        row: list[Example] = []
        for example in self._waiting:  # what did not fit before goes first; it fits, as the row is empty
            if len(example.ids) <= space:
                row.append(example)
                space -= len(example.ids)
        self._waiting = [example for example in self._waiting if all(example is not other for other in row)]
        while space and len(self._waiting) < _WAITING:
            example = self._draw()
            if len(example.ids) > space and example.cuttable:
                example = Example(example.ids[:space], example.weights[:space])
            if len(example.ids) <= space:
                row.append(example)
                space -= len(example.ids)
            else:
                self._waiting.append(example)
        if space:  # a document of padding, without weight, keeps every row at the same length
            row.append(Example([self._pad] * space, [0.0] * space))
        return Batch(
            torch.tensor([token for example in row for token in example.ids], dtype=torch.int64),
            torch.tensor([weight for example in row for weight in example.weights], dtype=torch.float32),
            tuple(len(example.ids) for example in row),
        )

    def _draw(self) -> Example:
        parts = self._spec.parts
        behind = min(range(len(parts)), key=lambda i: self._served[i] / parts[i].weight)
        for _ in range(_DRAWS):
            example = self._cut(self._streams[behind].next())
            if any(example.weights):
                self._served[behind] += len(example.ids)
                return example
        raise ValueError(
            f"data part {behind + 1} ({parts[behind].kind}): {_DRAWS} conversations running have no answer "
            f"within data.max_length ({self._spec.max_length}) tokens: raise it"
        )

    def _cut(self, example: Example) -> Example:
        limit = self._spec.max_length
        if len(example.ids) <= limit:
            return example
        return Example(example.ids[:limit], example.weights[:limit], example.cuttable)

    def state_dict(self) -> dict[str, Any]:
        return {
            "counts": [stream.count for stream in self._streams],
            "served": list(self._served),
            "waiting": [(list(example.ids), list(example.weights)) for example in self._waiting],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if len(state["counts"]) != len(self._streams):
            raise ValueError(
                f"the checkpoint was made with {len(state['counts'])} data parts, the recipe has "
                f"{len(self._streams)}: resume with the same [data] table"
            )
        for stream, count in zip(self._streams, state["counts"], strict=True):
            stream.count = count
        self._served = list(state["served"])
        self._waiting = [Example(list(ids), list(weights)) for ids, weights in state["waiting"]]
