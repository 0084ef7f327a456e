"""The detokenizer: token ids to text, one at a time.

Fed by `parser` and by raw streams. Invariant: it never gives half a character; what it gave, joined, equals
`Tokenizer.decode` of all ids so far, less the bytes it still holds back.
"""

from __future__ import annotations

import codecs

from .tokenizer import Tokenizer


class Detokenizer:
    """Bytes that can never become UTF-8 turn into U+FFFD."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def feed(self, token_id: int) -> str:
        """The characters that this token completes, possibly none."""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """What is held back, at the end of a text; then ready for another text."""
        return self._decoder.decode(b"", final=True)
