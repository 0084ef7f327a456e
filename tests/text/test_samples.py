"""Samples of texts and conversations, and what is said of files that hold none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qnext.models import locate
from qnext.text.chat import Chat
from qnext.text.samples import LENGTH, read_samples

MODEL = locate("tiny-instruct")


def test_a_plain_text_is_cut_into_samples(tmp_path: Path) -> None:
    file = tmp_path / "story.txt"
    file.write_text("Once upon a time there was a fox. " * 500)
    ids = Chat.from_pretrained(MODEL).tokenizer.encode(file.read_text())
    samples = read_samples(file, MODEL, tokens=LENGTH + 100)
    assert [len(each) for each in samples] == [LENGTH, 100]
    assert [token for each in samples for token in each] == ids[: LENGTH + 100]
    assert sum(map(len, read_samples(file, MODEL, tokens=10**6))) == len(ids)


def test_json_lines_of_texts_and_conversations(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi."}]
    file, chat = tmp_path / "talk.jsonl", Chat.from_pretrained(MODEL)
    file.write_text(json.dumps({"messages": messages}) + "\n\n" + json.dumps({"text": "A fox."}) + "\n")
    prompt = chat.encode(messages, add_generation_prompt=False)
    assert read_samples(file, MODEL) == [list(prompt.ids), chat.tokenizer.encode("A fox.")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "x.jsonl",
            b'{"text": "a"}\n{"words": 1}\n',
            "x.jsonl, line 2: expected an object with text or messages",
        ),
        ("x.jsonl", b"{text\n", "x.jsonl, line 1: "),
        ("x.jsonl", b'{"messages": []}\n', "line 1: messages is empty"),
        ("x.jsonl", b"\n", "x.jsonl: holds no text"),
        ("x.txt", b"", "x.txt: holds no text"),
        ("x.txt", b"\xff\xfe\x00", "x.txt: not UTF-8 text"),
    ],
)
def test_refusals(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_samples(tmp_path / name, MODEL)
    with pytest.raises(ValueError, match="no such file"):
        read_samples(tmp_path / "absent", MODEL)
