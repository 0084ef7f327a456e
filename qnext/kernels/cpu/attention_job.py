"""What a call of attention is about, as compiled code sees it.

Made by `attention`, read by `attention_inputs`, `attention_decode` and `attention_prefill`. Invariant: the
fields are the numbers that `attention` lays down, in that order.
"""

from __future__ import annotations

from typing import NamedTuple

from .jit import reader

EXACT_BF16, EXACT, FAST = 0, 1, 2  # caches of bf16 or fp32, with fp32 arithmetic; bf16 throughout
CODES = 3  # caches of codes of 8 bits, with fp32 arithmetic


class Job(NamedTuple):
    """`kind`: one of the four above. The layer's shape and its norms' weights; rows of (q | gate | k | v),
    or of (k | v) where there are no query heads, `row_step` bytes apart; rotary tables [T, R]; `queries`
    [T, Q, D], as bf16 where `kind` is FAST. `caches` [.., page size, G, D], `page_step` bytes from page to
    page, and cells of the new tokens. `desks`: a float for each dimension and thread. `eps` and `scale` are
    the bits of floats, all other numbers counts, bytes and addresses."""

    kind: int
    query_heads: int
    key_heads: int
    width: int
    first: int
    tokens: int
    rows: int
    row_step: int
    q_norm: int
    k_norm: int
    eps: int
    cos: int
    sin: int
    half: int
    scale: int
    queries: int
    keys: int
    values: int
    page_step: int
    page_size: int
    cells: int
    desks: int
    out: int


class Short(NamedTuple):
    """Pieces that `attention_decode` answers: `Row.table`, how their parts are laid out, pages [N, `pitch`].
    `scratch` has `scratch_step` bytes for each thread, `counter` is of 64 bytes."""

    sequences: int
    table: int
    layout: int
    pages: int
    pitch: int
    parts: int
    scratch: int
    scratch_step: int
    counter: int


class Long(NamedTuple):
    """A piece that `attention_prefill` answers: its start, length and context in the row, its pages, the key
    that the span begins at. `panels`: room for those of a span; `states`: 8 bytes for each query of the
    piece, and for 6 more for each key head."""

    start: int
    length: int
    context: int
    pages: int
    span: int
    panels: int
    states: int
    scratch: int
    scratch_step: int
    counter: int


MORE = 8 * len(Job._fields)  # bytes before a `Short` or a `Long`
read_job, read_short, read_long = reader(Job), reader(Short), reader(Long)
