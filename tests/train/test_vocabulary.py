"""Vocabulary: a small byte-level BPE with Qwen's added tokens, the same each time."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest

from qnext.synthetic.chat import compose
from qnext.synthetic.dialogue import Setting
from qnext.text.tokenizer import Tokenizer
from qnext.train.vocabulary import PLAIN_ADDED, SPECIAL, train_vocabulary, write_vocabulary

TEXTS = [message.content for i in range(300) for message in compose(Random(i), Setting()).messages]
ROWS = 700


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vocabulary")
    write_vocabulary(train_vocabulary(TEXTS, ROWS), path, "instruct", "{{ messages }}")
    return path


def test_rows_end_with_the_added_tokens(folder: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(folder)
    added = [*SPECIAL, *PLAIN_ADDED]
    assert tokenizer.vocab_size == ROWS and len(added) == 26
    assert [tokenizer.control[token] for token in added] == list(range(ROWS - 26, ROWS))


def test_special_flags_are_those_of_qwen(folder: Path) -> None:
    definition = json.loads((folder / "tokenizer.json").read_text())
    flags = {token["content"]: token["special"] for token in definition["added_tokens"]}
    assert flags["<|im_end|>"] and not flags["<think>"] and not flags["<tool_call>"]


@pytest.mark.parametrize("text", ["Once upon a time, 1234 cats!", "你好，世界\n\n", "Olá 🙂\t x", "e\u0301"])
def test_every_text_comes_back_in_nfc(folder: Path, text: str) -> None:
    tokenizer = Tokenizer.from_pretrained(folder)
    assert tokenizer.decode(tokenizer.encode(text)) == text.replace("e\u0301", "é")


def test_digits_stand_alone(folder: Path) -> None:
    tokenizer = Tokenizer.from_pretrained(folder)
    assert [tokenizer.decode([i]) for i in tokenizer.encode("2025")] == ["2", "0", "2", "5"]


def test_the_same_texts_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_vocabulary(train_vocabulary(TEXTS, ROWS), tmp_path, "instruct", "{{ messages }}")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize(
    ("variant", "temperature", "stops"), [("instruct", 0.7, 2), ("thinking", 0.6, 2), ("base", None, 1)]
)
def test_variants_differ_in_sampling_and_template(
    tmp_path: Path, variant: str, temperature: float | None, stops: int
) -> None:
    write_vocabulary(train_vocabulary(TEXTS, ROWS), tmp_path, variant)
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation.get("temperature") == temperature
    assert len([generation["eos_token_id"]] if stops == 1 else generation["eos_token_id"]) == stops
    assert "chat_template" not in json.loads((tmp_path / "tokenizer_config.json").read_text())


def test_too_little_text_is_refused() -> None:
    with pytest.raises(ValueError, match="give more text"):
        train_vocabulary(["tiny"], 4096)
