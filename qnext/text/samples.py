"""Samples: the texts of a file as token ids, for a model to be measured or calibrated on.

Read by `cli convert --calibrate` and by benchmarks. Invariant: the ids are what the server would give the
model for these texts, conversations through the checkpoint's own template.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from .chat import Chat

LENGTH = 1024  # tokens of a sample at most
WIDEST = 32  # characters a token, more than any text has on average


def read_samples(file: Path, checkpoint: Path, tokens: int = 8192) -> list[list[int]]:
    """The first `tokens` of a plain text, or of JSON lines with `text` or `messages`, in samples.

    Raises ValueError naming file and line.
    """
    if not file.is_file():
        raise ValueError(f"{file}: no such file; give a text, or JSON lines with text or messages")
    chat, found, left = Chat.from_pretrained(checkpoint), list[list[int]](), tokens
    for ids in _lines(file, chat) if file.suffix in (".jsonl", ".json") else _text(file, chat, tokens):
        for first in range(0, len(ids), LENGTH):
            sample = ids[first : min(first + LENGTH, first + left)]
            found, left = [*found, sample], left - len(sample)
            if not left:
                return found
    if not found:
        raise ValueError(f"{file}: holds no text")
    return found


def _text(file: Path, chat: Chat, tokens: int) -> Iterator[list[int]]:
    try:
        with open(file, encoding="utf-8") as stream:
            yield chat.tokenizer.encode(stream.read(tokens * WIDEST))
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text ({error.reason})") from None


def _lines(file: Path, chat: Chat) -> Iterator[list[int]]:
    with open(file, encoding="utf-8", errors="replace") as stream:
        for number, line in enumerate(islice(stream, 1_000_000), 1):
            if line.strip():
                yield _encode(line, chat, f"{file}, line {number}")


def _encode(line: str, chat: Chat, where: str) -> list[int]:
    try:
        value: Any = json.loads(line)
        if isinstance(value, dict) and isinstance(value.get("messages"), list):
            return list(chat.encode(value["messages"], add_generation_prompt=False).ids)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        return chat.tokenizer.encode(value["text"])
    raise ValueError(f"{where}: expected an object with text or messages")
