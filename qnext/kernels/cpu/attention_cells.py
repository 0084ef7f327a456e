"""A head of keys or values in a cell of the cache: fp32, bf16, or codes of 8 bits with their fp32 scale.

Used by `attention_inputs`, which writes them, and by the kernels that read them. Invariant: what is read is
the same number wherever it is read, and a head's depends on that head alone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ops import SCALE
from .attention_job import CODES, EXACT, EXACT_BF16
from .jit import inline
from .simd import (
    absolute,
    fill,
    larger,
    largest,
    load,
    load_bf16,
    load_i8,
    nearest,
    poke,
    spread,
    store,
    store_bf16,
    store_i8,
    to_int,
)

ITEM = {EXACT: 4, CODES: 1}  # bytes of a number, where it is not bf16


@inline
def head_bytes(kind: int, width: int) -> Any:
    """From head to head."""
    return width * 4 if kind == EXACT else width + SCALE if kind == CODES else width * 2


@inline
def _read_full(head: int, d: int, _width: int) -> Any:
    return load(head + d * 4)


@inline
def _read_half(head: int, d: int, _width: int) -> Any:
    return load_bf16(head + d * 2)


@inline
def _read_codes(head: int, d: int, width: int) -> Any:
    return load_i8(head + d) * spread(head + width)


READERS = {EXACT: _read_full, EXACT_BF16: _read_half, CODES: _read_codes}
"""By kind: (address of a head, number, width) -> that number and the 15 after it, as fp32."""


@inline
def read(kind: int, head: int, d: int, width: int) -> Any:
    """The same, where the kind is not known before."""
    if kind == EXACT:
        return _read_full(head, d, width)
    if kind == CODES:
        return _read_codes(head, d, width)
    return _read_half(head, d, width)


@inline
def _put_codes(x: int, width: int, out: int) -> None:
    """The nearest codes, of which the largest is 127 or -127."""
    tops = fill(0.0)
    for i in range(0, width * 4, 64):
        tops = larger(tops, absolute(load(x + i)))
    top = largest(tops)
    inverse = np.float32(127) / top if top > 0 else np.float32(0)
    for i in range(0, width, 16):
        store_i8(out + i, to_int(nearest(load(x + i * 4) * fill(inverse))))
    poke(out + width, top / np.float32(127))


@inline
def put(kind: int, x: int, width: int, out: int) -> None:
    """A head of fp32 numbers into a cell."""
    if kind == CODES:
        _put_codes(x, width, out)
    elif kind == EXACT:
        for i in range(0, width * 4, 64):
            store(out + i, load(x + i))
    else:
        for i in range(0, width, 16):
            store_bf16(out + i * 2, load(x + i * 4))
