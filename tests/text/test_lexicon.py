"""A tokenizer as grammars see it: exact bytes, closing tokens, and where in a JSON text one is."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qnext.text.chat import Chat
from qnext.text.lexicon import ESCAPED, INSIDE, OUTSIDE, TEXT, Lexicon, Order, after


@pytest.fixture(scope="module")
def lexicon(chats: dict[str, Chat]) -> Lexicon:
    return Lexicon(chats["instruct"].tokenizer, chats["instruct"].eos_token_ids)


@given(text=st.text())
def test_encoding_is_exact_where_the_tokenizer_normalises(lexicon: Lexicon, text: str) -> None:
    text = "e\u0301" + text
    ids = lexicon.encode(text)
    assert b"".join(lexicon.tokens[i] for i in ids) == text.encode()
    assert not {*ids} & {i for i, token in enumerate(lexicon.tokens) if token.startswith(b"<|")}


def test_the_first_of_an_order() -> None:
    bits = np.array([0b00000100, 0b10000001], dtype=np.uint8)
    assert Order([9, 15, 2]).first(bits) == 15
    assert Order([9, 2, 8]).first(bits) == 2
    assert Order([9]).first(bits) is None and Order([]).first(bits) is None


def test_closers_come_first_and_the_longest_of_them(lexicon: Lexicon) -> None:
    everything = np.full(-(-lexicon.size // 8), 255, dtype=np.uint8)
    first = lexicon.orders[OUTSIDE].first(everything)
    assert first is not None
    closers = [token for token in lexicon.tokens if token and not token.strip(b"}]")]
    assert lexicon.tokens[first] == max(closers, key=len)
    inside = lexicon.orders[INSIDE].first(everything)
    assert inside is not None and lexicon.tokens[inside].startswith(b'"')
    assert lexicon.orders[ESCAPED].first(everything) is None is lexicon.orders[TEXT].first(everything)


@given(
    value=st.recursive(
        st.text() | st.integers() | st.none(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    ),
    cut=st.integers(0, 10**6),
)
def test_where_in_a_json_text(value: object, cut: int) -> None:
    data = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
    assert after(OUTSIDE, data) == (OUTSIDE, 0)
    cut %= len(data) + 1
    state, opened = after(OUTSIDE, data[:cut])
    assert opened >= 0 and after(state, data[cut:]) == (OUTSIDE, -opened)


def test_inside_and_escaped() -> None:
    assert after(OUTSIDE, b'{"a') == (INSIDE, 1) and after(INSIDE, b"}]\\") == (ESCAPED, 0)
    assert after(ESCAPED, b'"') == (INSIDE, 0)
    assert after(TEXT, b'{"') == (TEXT, 0) and after(TEXT, b"<tool_call>") == (OUTSIDE, 0)
