"""The lexicon: a tokenizer as grammars see it: the bytes of each token, and which tokens close what is open.

Made once for a tokenizer by `grammar_compiler`, read by `matcher` and `closing`. Invariant: read-only, so
threads share it; a control token stands for no text, so no grammar of texts allows one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from llguidance import LLTokenizer, TokenizerWrapper

from .tokenizer import Tokenizer

OUTSIDE, INSIDE, ESCAPED, TEXT = range(4)
"""Where in a JSON text one is: outside strings, inside one, or after its backslash; or in no JSON at all."""

# What ends JSON soonest, best first. Outside strings: brackets that close, what stands between values, then
# the values, shortest first.
_CLOSERS = re.compile(rb"[}\]]+")
_OUTSIDE = [b",", b":", *(b"%d" % digit for digit in range(10)), b'""', b"[]", b"{}", b"null", b"true"]
_OUTSIDE += [b"false", b"n", b"t", b"f", b'"', b"[", b"{"]
_STRING_CLOSERS = re.compile(rb'"[}\]]+')
_INSIDE = [b'":', b'"']
_PLAIN = re.compile(r'[^"\\{}\[\],:\x00-\x1f\x7f]+')


class Order:
    """Token ids, best first, to be looked for in a mask of bits."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = np.array(ids, dtype=np.int64)
        self._byte, self._bit = self._ids >> 3, (1 << (self._ids & 7)).astype(np.uint8)

    def first(self, bits: np.ndarray) -> int | None:
        """The first that the mask has."""
        if not len(self._ids):
            return None
        found = (bits[self._byte] & self._bit) != 0
        place = int(found.argmax())
        return int(self._ids[place]) if found[place] else None


class Lexicon:
    """`tokens` are the tokens' bytes by id, `lengths` how many characters they make, `plain` those that are
    text without any mark of JSON, `single` those of one ASCII sign; `newlines` maps tokens of nothing but
    newlines to how many."""

    def __init__(self, tokenizer: Tokenizer, eos: Sequence[int]) -> None:
        size = tokenizer.vocab_size
        self._tokenizer = tokenizer
        self.size = size
        self.eos = np.array([i for i in eos if i < size], dtype=np.int64)
        self.tokens = [tokenizer.token_bytes(i) for i in range(size)]
        self._id_of_byte = {token[0]: i for i, token in enumerate(self.tokens) if len(token) == 1}
        special = sorted(tokenizer.control_ids | set(self.eos.tolist()))
        self.core = LLTokenizer(
            TokenizerWrapper(_Source(self, special)), n_vocab=size, eos_token=self.eos.tolist()
        )
        ordinary = np.array([bool(token) for token in self.tokens])
        ordinary[special] = False
        self.lengths = np.array([len(token.decode("utf-8", "ignore")) for token in self.tokens])
        self.plain = ordinary & np.array([_is_plain(token) for token in self.tokens])
        self.single = ordinary & np.array([len(token) == 1 and token.isascii() for token in self.tokens])
        self.newlines = {
            i: len(t) for i, t in enumerate(self.tokens) if ordinary[i] and t in (b"\n", b"\n\n")
        }
        ids = {token: i for i, token in enumerate(self.tokens) if ordinary[i]}
        self.orders = (
            Order(_order(ids, _CLOSERS, _OUTSIDE)),
            Order(_order(ids, _STRING_CLOSERS, _INSIDE)),
            Order([]),
            Order([]),
        )

    def encode(self, text: str) -> list[int]:
        """Ids that spell exactly `text`, unlike those of a tokenizer that normalises it first."""
        ids = self._tokenizer.encode(text)
        data = text.encode("utf-8", "replace")
        if b"".join(self.tokens[i] for i in ids) == data:
            return ids
        return [self._id_of_byte[byte] for byte in data]


class _Source:
    """What llguidance asks of a tokenizer."""

    def __init__(self, lexicon: Lexicon, special: list[int]) -> None:
        self._lexicon = lexicon
        self.eos_token_id, self.bos_token_id = int(lexicon.eos[0]), None
        self.tokens, self.special_token_ids = lexicon.tokens, special

    def __call__(self, data: bytes) -> list[int]:
        return self._lexicon.encode(data.decode())


def after(state: int, data: bytes) -> tuple[int, int]:
    """Where in a JSON text one is after `data`, and how many more brackets are open then."""
    if state == TEXT:
        return (OUTSIDE if data == b"<tool_call>" else TEXT), 0
    opened = 0
    for byte in data:
        if state == ESCAPED:
            state = INSIDE
        elif byte == 0x22:
            state = INSIDE if state == OUTSIDE else OUTSIDE
        elif byte == 0x5C and state == INSIDE:
            state = ESCAPED
        elif state == OUTSIDE:
            opened += (byte in b"{[") - (byte in b"}]")
    return state, opened


def _order(ids: dict[bytes, int], pattern: re.Pattern[bytes], others: list[bytes]) -> list[int]:
    closing = sorted((token for token in ids if pattern.fullmatch(token)), key=len, reverse=True)
    return [ids[token] for token in [*closing, *others] if token in ids]


def _is_plain(token: bytes) -> bool:
    try:
        return _PLAIN.fullmatch(token.decode()) is not None
    except UnicodeDecodeError:
        return False
