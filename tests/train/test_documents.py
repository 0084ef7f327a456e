"""Documents: files come apart into whole texts, lower-case stories get capitals, held-out files stay out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import zstandard

from qnext.train.documents import (
    fit_more_names,
    fit_names,
    plain,
    read_documents,
    read_text,
    recase,
    split_passages,
    split_stories,
)

LONG = " ".join(["Lily and her mom went to the park, and Lily saw a duck."] * 6)


def test_typographic_signs_become_plain() -> None:
    assert plain("“Don’t” – â€œwaitâ€…\u200b") == '"Don\'t" – "wait"...'


def test_stories_part_at_single_newlines_and_keep_paragraphs_and_dialogue() -> None:
    first, second = f"{LONG}\n\nThey were happy.", LONG.replace("Lily", "Ben")
    text = f'{first}\n"Hello!" she said.\n{second}\n'
    assert split_stories(text) == [f'{first}\n\n"Hello!" she said.', second]


def test_stories_that_only_empty_lines_part_split_at_openings() -> None:
    tale = f"Once upon a time there was a cat.\n\n{LONG * 5}"
    text = "\n\n".join(["cut start.", tale, tale, "Once it was cut"])
    assert split_stories(text) == [tale, tale]


def test_recase_restores_true_case() -> None:
    names = frozenset({"tom", "lily"})
    true = (
        'One day, Tom met Lily. "Do you want to play?" asked Tom. She said, "Yes, I do!" His mom smiled. '
        '"It is late," said Mom.\n\n"Oh no!" said the dog. They named the dog Rex. Rex ran.'
    )
    assert recase(true.lower(), names | {"rex"}) == true


def test_recase_takes_a_name_from_the_story_itself() -> None:
    assert recase("a boy named zed ran. then zed fell.", frozenset()) == "A boy named Zed ran. Then Zed fell."


def test_names_are_fitted_on_true_case_and_on_speech() -> None:
    cased = "One day, Tom saw the dog. Then Tom ran, and Tom saw the dog again, and the dog ran."
    assert fit_names(cased) == {"tom"}
    assert fit_more_names("yes, said doug. no, said dog. doug said hi. the dog sat.", cased) == {"doug"}


def test_passages_end_at_paragraphs_or_sentences() -> None:
    passages = split_passages("\n\n".join(["One two three. Four five six."] * 40), size=200)
    assert all(len(passage) <= 210 and passage.endswith("six.") for passage in passages)
    long = split_passages("A sentence of words. " * 50, size=200)
    assert len(long) > 3 and all(passage.endswith("words.") for passage in long)


def write(path: Path, text: str) -> Path:
    path.write_bytes(zstandard.compress(text.encode()))
    return path


def test_books_give_english_passages(tmp_path: Path) -> None:
    rows = [
        {"lang": "en", "text": "It was a dark night. " * 30},
        {"lang": "de", "text": "Es war Nacht. " * 50},
    ]
    path = write(tmp_path / "books.jsonl.zst", "\n".join(map(json.dumps, rows)))
    assert "Nacht" not in "".join(read_documents("passages", path))


def test_pairs_are_grouped_and_always_in_the_same_order(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.tsv.zst", "\n".join(f"Hello {i}.\t你好 {i}。" for i in range(20)))
    documents = read_documents("pairs", path)
    assert [document.count("\n") + 1 for document in documents] == [8, 8, 4]
    assert documents == read_documents("pairs", path)


def test_lower_stories_leave_out_what_the_cased_file_has(tmp_path: Path) -> None:
    cased = f"{LONG}\n{LONG}\n"
    write(tmp_path / "tinystories_en_b.txt.zst", cased)
    rest = f"a cut end of a story. {LONG.lower()}\nonce, lily met ben. {LONG.lower()}"
    path = write(tmp_path / "tinystories_en_lower.txt.zst", cased.lower() + rest)
    (story,) = read_documents("lower_stories", path)
    assert story.startswith("Once, Lily met") and story.endswith(LONG)


def test_held_out_file_is_refused_unless_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "tinystories_en_a.txt.zst", f"{LONG}\n{LONG}\n")
    with pytest.raises(ValueError, match="held out for evaluation"):
        read_documents("stories", path)
    assert read_documents("stories", path, heldout=True)


@pytest.mark.parametrize(
    ("kind", "name", "message"), [("poems", "a.txt", "no document kind"), ("stories", "b.txt", "not found")]
)
def test_what_cannot_be_read_is_named(tmp_path: Path, kind: str, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_documents(kind, tmp_path / name)


def test_a_file_without_documents_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no document"):
        read_documents("stories", write(tmp_path / "x.zst", "\n\n\n"))


@pytest.mark.parametrize(
    ("kind", "lines", "message"),
    [
        ("passages", b'{"text": "a", "lang": "en"}\n{', "line 2: not JSON"),
        ("passages", b"\n\n[1]", "line 3: give an object, not list"),
        ("passages", b'{"text": "a", "lang": "en"}\n{"lang": "en"}', "line 2: text is missing or no string"),
        ("passages", b'{"text": "a", "lang": 1}', "line 1: lang is missing or no string"),
        ("passages", b"", "holds no document"),
        ("pairs", b"a\tb\n\nno tab", "line 3: give two sentences with a tab"),
        ("pairs", b"a\t ", "line 1: give two sentences with a tab"),
        ("stories", b"one\ntwo\n\xff\n", "line 3: not UTF-8 text"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_malformed_line_is_named(
    tmp_path: Path, kind: str, lines: bytes, message: str, packed: bool
) -> None:
    path = tmp_path / ("data.zst" if packed else "data.txt")
    path.write_bytes(zstandard.compress(lines) if packed else lines)
    with pytest.raises(ValueError, match=message) as error:
        read_documents(kind, path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("content", [b"no zstd at all", zstandard.compress(b"text " * 999)[:-5]])
def test_a_file_that_was_cut_off_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.zst"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"data\.zst is no whole zstd file"):
        read_documents("stories", path)


def test_frames_are_read_to_the_last(tmp_path: Path) -> None:
    path = tmp_path / "data.zst"
    path.write_bytes(zstandard.compress(b"one ") + zstandard.compress(b"two"))
    assert read_text(path) == "one two"
