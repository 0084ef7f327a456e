from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from qnext.text.detokenizer import Detokenizer
from qnext.text.tokenizer import Tokenizer


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_pieces_join_to_the_decoded_text(tokenizer: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=20))
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.feed(i) for i in ids] + [detokenizer.flush()]
    assert "".join(pieces) == tokenizer.decode(ids, skip_control=False)


def test_never_half_a_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("😀é")
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.feed(i) for i in ids]
    assert "".join(pieces) == "😀é" and pieces[0] == ""
    detokenizer.feed(ids[0])
    assert detokenizer.flush() == "\ufffd" and detokenizer.flush() == ""
    assert detokenizer.feed(tokenizer.encode("a")[0]) == "a"
