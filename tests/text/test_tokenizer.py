from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers, trainers

from qnext.text.tokenizer import Tokenizer

TEXTS = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.sampled_from(
            ["<think>", "</think>", "<|im_end|>", "<|im_", "start|>", "<", ">", "\n\n", "👍🏽", "é"]
        ),
    ),
    max_size=8,
).map("".join)


@settings(deadline=None, max_examples=200)
@given(text=TEXTS)
def test_encode_is_lossless_and_never_controls(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert not tokenizer.control_ids & set(ids)
    assert tokenizer.decode(ids, skip_control=False) == unicodedata.normalize("NFC", text)


@settings(deadline=None, max_examples=200)
@given(text=TEXTS)
def test_encode_trusted_equals_the_library(tokenizer: Tokenizer, backend: Backend, text: str) -> None:
    ids = tokenizer.encode_trusted(text)
    assert ids == backend.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_control=True) == backend.decode(
        [i for i in ids if i not in tokenizer.control_ids], skip_special_tokens=False
    )


def test_a_marker_breaks_control_tokens(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_trusted("<think>a<#think>#b", marker="#")
    assert ids == [tokenizer.control["<think>"], *tokenizer.encode("a<think>b")]


def test_the_longest_control_token_wins(backend: Backend) -> None:
    definition = json.loads(backend.to_str())
    definition["added_tokens"] += [dict(definition["added_tokens"][0], id=10_000, content="<think>!")]
    tokenizer = Tokenizer(definition, {}, "here")
    assert tokenizer.encode_trusted("<think>!<think>") == [10_000, tokenizer.control["<think>"]]
    assert tokenizer.vocab_size == 10_001


def test_lone_surrogates_are_replaced(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("a\ud800b \ud83d\udc4d")) == "a\ufffdb 👍"


def test_token_bytes(tokenizer: Tokenizer) -> None:
    text = "naïve 今天 👩‍👩‍👧\t\n"
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))) == text.encode()
    assert {tokenizer.token_bytes(i) for i in range(300)} >= {bytes([b]) for b in range(256)}
    assert tokenizer.token_bytes(tokenizer.control["</think>"]) == b"</think>"
    assert tokenizer.token_bytes(tokenizer.vocab_size) == tokenizer.token_bytes(-1) == b""
    assert tokenizer.vocab_size == 626


def test_decode_skips_controls_and_replaces_broken_bytes(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_trusted("<|im_start|>hi<|im_end|>")
    assert tokenizer.decode(ids) == "hi"
    assert tokenizer.decode(ids, skip_control=False) == "<|im_start|>hi<|im_end|>"
    thumb = tokenizer.encode("😀")
    assert len(thumb) > 1
    assert tokenizer.decode(thumb[:-1]) == "\ufffd"


def test_control_tokens_listed_in_the_vocabulary_stay_out_of_text() -> None:
    """BpeTrainer puts special tokens into the vocabulary, where a whole word may find them."""
    backend = Backend(models.BPE(ignore_merges=True))
    whole = {"add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([], trainer)
    definition = json.loads(backend.to_str()) | {"pre_tokenizer": {"type": "ByteLevel", **whole}}
    assert "<end>" in definition["model"]["vocab"]
    tokenizer = Tokenizer(definition, {}, "here")
    assert len(tokenizer.encode("<end>")) == 5
    assert tokenizer.encode_trusted("<end>") == [tokenizer.control["<end>"]]


def test_configuration_is_read(checkpoint: Callable[[str], Path], templates: dict[str, str]) -> None:
    folder = checkpoint("instruct")
    tokenizer = Tokenizer.from_pretrained(folder)
    assert tokenizer.special_tokens == {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    assert tokenizer.chat_template == templates["instruct"]
    (folder / "chat_template.jinja").write_text("newer", encoding="utf-8")
    assert Tokenizer.from_pretrained(folder).chat_template == "newer"
    for file in ("chat_template.jinja", "tokenizer_config.json"):
        (folder / file).unlink()
    bare = Tokenizer.from_pretrained(folder)
    assert bare.chat_template is None and bare.special_tokens == {}


def test_other_forms_of_configuration(backend: Backend) -> None:
    definition = json.loads(backend.to_str())
    definition["truncation"] = {
        "direction": "Right",
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    config: dict[str, Any] = {
        "eos_token": {"content": "<|im_end|>", "lstrip": False},
        "add_bos_token": False,
        "bos_token": None,
        "added_tokens_decoder": {"700": {"content": "<extra>"}, "1": {"content": "<think>"}},
        "chat_template": [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}],
    }
    tokenizer = Tokenizer(definition, config, "here")
    assert tokenizer.special_tokens == {"eos_token": "<|im_end|>"}
    assert tokenizer.chat_template == "yes"
    assert tokenizer.control["<extra>"] == 700 and tokenizer.control["<think>"] == backend.token_to_id(
        "<think>"
    )
    assert len(tokenizer.encode("a b c d e")) > 2, "a truncation setting must not cut prompts"


def test_unfit_files_are_named(tmp_path: Path, backend: Backend) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.json is missing"):
        Tokenizer.from_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    good = json.loads(backend.to_str())
    holed = {t: i for t, i in good["model"]["vocab"].items() if t != "Ġ"}
    token = dict(good["added_tokens"][0], content="x")
    for definition, says in (
        ([], "holds list"),
        (good | {"model": good["model"] | {"type": "Unigram"}}, "not a byte-level BPE"),
        (good | {"pre_tokenizer": {"type": "Whitespace"}}, "not a byte-level BPE"),
        (good | {"model": good["model"] | {"vocab": holed, "merges": []}}, "each of the 256 bytes"),
        (good | {"model": good["model"] | {"vocab": good["model"]["vocab"] | {"▁a": 650}}}, "256 bytes"),
        (good | {"model": good["model"] | {"merges": [["no", "such"]]}}, "cannot be loaded"),
        (good | {"added_tokens": [token]}, "one-character added token 'x'"),
    ):
        file.write_text(json.dumps(definition), encoding="utf-8")
        with pytest.raises(ValueError, match=says) as caught:
            Tokenizer.from_pretrained(tmp_path)
        assert str(file) in str(caught.value)
    file.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not valid JSON"):
        Tokenizer.from_pretrained(tmp_path)
