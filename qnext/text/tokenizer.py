"""The tokenizer of a checkpoint: text to token ids and back, with control tokens kept apart from text.

Read by `chat`, `detokenizer`, `parser`, `train` and the server's tokenizer route. Invariant: `encode` never
gives the id of a control token, whatever the text; only `encode_trusted` does, and only where the text spells
one unbroken. It is a byte-level BPE, so every text can be encoded and every id stands for certain bytes.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Backend


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; ValueError naming the file if it holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds {type(value).__name__}: expected a JSON object")
    return value


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte: Latin-1's visible characters stand for themselves, the other
    bytes, in order, for the characters from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = sorted(set(range(256)) - set(visible))
    return {chr(b): b for b in visible} | {chr(0x100 + i): b for i, b in enumerate(hidden)}


_BYTE_OF = _byte_alphabet()
# The patterns that part words look at a run of blanks as often as it is long, and give up after ten million.
_LONGEST_BLANK = 1_000_000
_PIECE = 2**16  # characters: some hundredths of a second


class Tokenizer:
    """`control` maps each control token (every added token, `<think>` as well as `<|im_end|>`) to its id;
    `special_tokens` holds the configured names, such as "eos_token"; `vocab_size` is the highest id plus
    one."""

    def __init__(self, definition: Mapping[str, Any], config: Mapping[str, Any], source: str) -> None:
        """`definition` and `config` are the contents of tokenizer.json and tokenizer_config.json; `source`
        names the former in errors."""
        self.control: dict[str, int] = {t["content"]: t["id"] for t in definition.get("added_tokens") or ()}
        for token_id, token in (config.get("added_tokens_decoder") or {}).items():
            self.control.setdefault(token["content"], int(token_id))
        self.control_ids = frozenset(self.control.values())
        if short := [text for text in self.control if len(text) < 2]:
            raise ValueError(
                f"{source} has the one-character added token {short[0]!r}: it cannot be told from text"
            )
        self._backend = _plain_backend(definition, self.control_ids, source)
        self._token_of: dict[int, str] = {i: t for t, i in self._backend.get_vocab().items()}
        self._control_text = {i: t for t, i in self.control.items()}
        self.vocab_size = 1 + max(self._token_of.keys() | self.control_ids)
        longest_first = sorted(self.control, key=len, reverse=True)
        self._control_pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self.special_tokens = {
            key: token["content"] if isinstance(token, dict) else token
            for key, token in config.items()
            if key.endswith("_token") and isinstance(token, (str, dict))
        }
        self.chat_template = _chat_template(config)

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Load `tokenizer.json` from a checkpoint directory, with `tokenizer_config.json` and
        `chat_template.jinja` where they exist. Raises ValueError naming the file that is missing or unfit."""
        folder = Path(path)
        source, config_file = folder / "tokenizer.json", folder / "tokenizer_config.json"
        if not source.is_file():
            raise ValueError(f"{source} is missing: give the directory of a checkpoint with its tokenizer")
        config = read_json(config_file) if config_file.is_file() else {}
        template_file = folder / "chat_template.jinja"
        if template_file.is_file():
            config["chat_template"] = template_file.read_text(encoding="utf-8")
        return cls(read_json(source), config, str(source))

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; what looks like a control token in it is plain text. Lone surrogates become
        U+FFFD. Raises ValueError for a run of blanks too long to be looked through."""
        try:
            text.encode()
        except UnicodeEncodeError:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if len(text) > _LONGEST_BLANK:
            _check_blanks(text)
        # as a batch of one, since the library lets other threads run only while it encodes a batch
        (encoded,) = self._backend.encode_batch_fast([text], add_special_tokens=False)
        return list(encoded.ids)

    def count_up_to(self, texts: Iterable[str], most: int) -> int:
        """About how many tokens texts make (a few more where they are cut into pieces to be counted); the
        count ends with the first piece after which it is above `most`."""
        count = 0
        for text in texts:
            for start in range(0, len(text), _PIECE):
                count += len(self.encode(text[start : start + _PIECE]))
                if count > most:
                    return count
        return count

    def encode_trusted(self, text: str, *, marker: str = "") -> list[int]:
        """Ids of text that a template wrote: control tokens become their ids, the rest is encoded as by
        `encode`. A `marker` inside a control token breaks it; markers themselves are left out."""
        ids: list[int] = []
        start = 0
        for match in self._control_pattern.finditer(text):
            ids += self.encode(text[start : match.start()].replace(marker, ""))
            ids.append(self.control[match.group()])
            start = match.end()
        return ids + self.encode(text[start:].replace(marker, ""))

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes an id stands for; none for an id beyond the vocabulary (models pad their embeddings)."""
        if token_id in self._control_text:
            return self._control_text[token_id].encode()
        return bytes(_BYTE_OF[char] for char in self._token_of.get(token_id, ""))

    def decode(self, ids: Iterable[int], skip_control: bool = True) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        kept = (i for i in ids if not (skip_control and i in self.control_ids))
        return b"".join(map(self.token_bytes, kept)).decode("utf-8", "replace")


def _plain_backend(definition: Mapping[str, Any], control_ids: frozenset[int], source: str) -> Backend:
    """The same BPE without added tokens: it cannot give a control id, not even for a vocabulary that lists
    them."""
    model = definition.get("model") or {}
    vocab = {t: i for t, i in (model.get("vocab") or {}).items() if i not in control_ids}
    stages = [definition.get("pre_tokenizer") or {}]
    stages += stages[0].get("pretokenizers") or []
    if model.get("type", "BPE") != "BPE" or not any(stage.get("type") == "ByteLevel" for stage in stages):
        raise ValueError(f"{source} is not a byte-level BPE, the only kind of tokenizer that is supported")
    if not _BYTE_OF.keys() <= vocab.keys() or not set("".join(vocab)) <= _BYTE_OF.keys():
        raise ValueError(
            f"{source} is no whole byte-level BPE: its vocabulary must spell each of the 256 bytes"
        )
    plain = dict(definition, model={**model, "vocab": vocab}, added_tokens=[], post_processor=None)
    plain |= {"truncation": None, "padding": None}
    try:
        return Backend.from_str(json.dumps(plain))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(f"{source} cannot be loaded: {error}") from None


def _check_blanks(text: str) -> None:
    for run in re.finditer(r"\s+", text):
        if run.end() - run.start() > _LONGEST_BLANK:
            raise ValueError(f"the text has more than {_LONGEST_BLANK} blanks in a row: leave some out")


def _chat_template(config: Mapping[str, Any]) -> str | None:
    """`chat_template` is the source, or a list of named ones of which "default" is for conversations."""
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template if isinstance(template, str) else None
