"""Every instruction of `simd` and every move of `shuffles` against numpy.

Each kernel below applies many of them in turn and stores 64 bytes for each; the table under it says, in the
same order, what numpy makes of the same inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import pytest
from numba import prange

from qnext.kernels.cpu import activations, shuffles, simd
from qnext.kernels.cpu.jit import kernel

F32, I32, RNG = np.float32, np.int32, np.random.default_rng(5)
SPECIAL = [0.0, -0.0, np.inf, -np.inf, 0.5, 1.5, 2.5, -0.5, 1e-30, 3e38, -3e38, 1, -2, 3, 4.0039062, 5]
Twins = dict[str, Callable[..., Any]]


def results(function: Callable[..., Any], count: int, *inputs: Any) -> np.ndarray:
    """What a kernel stores, between bytes that it may not touch [count, 64]."""
    out = np.full(64 * count + 128, 0xA5, np.uint8)
    function(out.ctypes.data + 64, *(x.ctypes.data if isinstance(x, np.ndarray) else x for x in inputs))
    assert (out[:64] == 0xA5).all() and (out[-64:] == 0xA5).all()
    return out[64:-64].reshape(count, 64)


def first(value: float | np.ndarray, dtype: type) -> np.ndarray:
    """As stored by a kernel that writes one number: the rest of the 64 bytes is untouched."""
    row = np.full(64, 0xA5, np.uint8)
    bits = np.ascontiguousarray(value, dtype).view(np.uint8).reshape(-1)
    row[: len(bits)] = bits
    return row.view(dtype)


def to_bf16(x: np.ndarray) -> np.ndarray:
    """The bits [uint16] of the nearest bf16, ties to even."""
    bits = x.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(F32)


@kernel()
def float_kernel(out: int, p: int) -> None:
    x, y, z = simd.load(p), simd.load(p + 64), simd.load(p + 128)
    simd.store(out, x + y)
    simd.store(out + 64, x - y)
    simd.store(out + 128, x * y)
    simd.store(out + 192, x / y)
    simd.store(out + 256, simd.fma(x, y, z))
    simd.store(out + 320, simd.larger(x, y))
    simd.store(out + 384, simd.smaller(x, y))
    simd.store(out + 448, simd.absolute(x))
    simd.store(out + 512, simd.nearest(x))
    simd.store(out + 576, simd.root(simd.absolute(x)))
    simd.store(out + 640, simd.fill(simd.largest(x)))
    simd.store(out + 704, simd.fill(simd.total(x)))
    simd.store_i32(out + 768, simd.to_int(x))
    simd.copy(out + 832, p + 5, 37)
    simd.store_bf16(out + 896, x)
    simd.store(out + 960, simd.load_bf16(p + 2))
    simd.store(out + 1024, simd.spread(p + 12))
    simd.poke(out + 1088, simd.peek(p + 8))
    simd.store(out + 1152, simd.fill(2.5))
    simd.store(out + 1216, shuffles.swap_halves(x))
    simd.store_i32(out + 1280, shuffles.pair_bf16(x, y))
    simd.store_i32(out + 1344, activations.as_int(x))
    simd.store(out + 1408, shuffles.swap_quarters(x))
    simd.store_bf16_pair(out + 1472, x, y)
    simd.prefetch(p)
    simd.prefetch_l2(p)


def by_halves(x: np.ndarray) -> F32:
    while len(x) > 1:
        x = x[: len(x) // 2] + x[len(x) // 2 :]
    return x[0]


FLOATS: Twins = {
    "add": lambda x, y, z: x + y,
    "sub": lambda x, y, z: x - y,
    "mul": lambda x, y, z: x * y,
    "div": lambda x, y, z: x / y,
    "fma": lambda x, y, z: (x.astype(np.float64) * y + z).astype(F32),
    "larger": lambda x, y, z: np.fmax(x, y),
    "smaller": lambda x, y, z: np.fmin(x, y),
    "absolute": lambda x, y, z: np.abs(x),
    "nearest": lambda x, y, z: np.rint(x),
    "root": lambda x, y, z: np.sqrt(np.abs(x)),
    "largest": lambda x, y, z: np.full(16, x.max()),
    "total": lambda x, y, z: np.full(16, by_halves(x)),
    "to_int": lambda x, y, z: np.trunc(x).astype(I32),
    "copy": lambda x, y, z: first(x.view(np.uint8)[5:42], np.uint8),
    "store_bf16": lambda x, y, z: first(to_bf16(x), np.uint16),
    "load_bf16": lambda x, y, z: from_bf16(np.concatenate((x, y)).view(np.uint16)[1:17]),
    "spread": lambda x, y, z: np.full(16, x[3]),
    "peek and poke": lambda x, y, z: first(x[2], F32),
    "fill": lambda x, y, z: np.full(16, 2.5, F32),
    "swap_halves": lambda x, y, z: np.roll(x, 8),
    "pair_bf16": lambda x, y, z: np.stack((to_bf16(x), to_bf16(y)), 1),
    "as_int": lambda x, y, z: x.view(I32),
    "swap_quarters": lambda x, y, z: x.reshape(2, 2, 4)[:, ::-1],
    "store_bf16_pair": lambda x, y, z: np.concatenate((to_bf16(x), to_bf16(y))),
}


@pytest.mark.parametrize("name", FLOATS)
def test_floats(name: str) -> None:
    inputs = (RNG.normal(size=(3, 16)) * 30).astype(F32)
    found = results(float_kernel, len(FLOATS), inputs)[[*FLOATS].index(name)]
    assert found.tobytes() == np.ascontiguousarray(FLOATS[name](*inputs)).tobytes()


@pytest.mark.parametrize(
    "name", ["larger", "smaller", "absolute", "nearest", "store_bf16", "store_bf16_pair"]
)
def test_ends_ties_and_infinities(name: str) -> None:
    inputs = np.array([SPECIAL, SPECIAL[::-1], SPECIAL], F32)
    found = results(float_kernel, len(FLOATS), inputs)[[*FLOATS].index(name)]
    wanted = FLOATS[name](*inputs)
    np.testing.assert_array_equal(found.view(wanted.dtype), wanted)


def test_nan_stays_nan_in_bf16() -> None:
    bits = np.full(48, 0x7F800001, np.uint32)  # one that rounding by addition would make infinite
    found = results(float_kernel, len(FLOATS), bits)[[*FLOATS].index("store_bf16")]
    assert np.isnan(from_bf16(found.view(np.uint16)[:16])).all()


@kernel()
def integer_kernel(out: int, p: int) -> None:
    a, b, c = simd.load_i32(p), simd.load_i32(p + 64), simd.load_i32(p + 128)
    simd.store_i32(out, a + b)
    simd.store_i32(out + 64, a - b)
    simd.store_i32(out + 128, simd.shift_left(a, 5))
    simd.store_i32(out + 192, simd.shift_right(a, 5))
    simd.store_i32(out + 256, simd.masked(a, -65536))
    simd.store_i32(out + 320, simd.fill_i32(simd.total_i32(a)))
    simd.store(out + 384, simd.to_float(a))
    simd.store(out + 448, simd.as_float(a))
    simd.store_i8(out + 512, a)
    simd.store(out + 576, simd.load_i8(p + 3))
    simd.store_i32(out + 640, simd.spread_i32(p + 20))
    simd.poke_i32(out + 704, simd.peek_i32(p + 4))
    simd.store_i32(out + 768, simd.fill_i32(-7))
    simd.store_i32(out + 832, simd.dot_u8_i8(c, a, b))
    simd.store_i32(out + 896, shuffles.zip_low(a, b))
    simd.store_i32(out + 960, shuffles.zip_high(a, b))
    simd.store_i32(out + 1024, simd.shift_right_by(a, simd.peek_i32(p + 128) & 31))
    simd.store(out + 1088, simd.nibble(a, 12))


def dot_bytes(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    return c + (a.view(np.uint8).astype(I32) * b.view(np.int8)).reshape(16, 4).sum(1, dtype=I32)


def zipped(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.stack((a.view(np.uint16), b.view(np.uint16)), 1).reshape(-1)


INTEGERS: Twins = {
    "add": lambda a, b, c: a + b,
    "sub": lambda a, b, c: a - b,
    "shift_left": lambda a, b, c: a << 5,
    "shift_right": lambda a, b, c: a.view(np.uint32) >> 5,
    "masked": lambda a, b, c: a & I32(-65536),
    "total_i32": lambda a, b, c: np.full(16, a.sum(dtype=I32)),
    "to_float": lambda a, b, c: a.astype(F32),
    "as_float": lambda a, b, c: a.view(F32),
    "store_i8": lambda a, b, c: first(a.astype(np.int8), np.int8),
    "load_i8": lambda a, b, c: np.concatenate((a, b)).view(np.int8)[3:19].astype(F32),
    "spread_i32": lambda a, b, c: np.full(16, a[5]),
    "peek and poke": lambda a, b, c: first(a[1], I32),
    "fill_i32": lambda a, b, c: np.full(16, -7, I32),
    "dot_u8_i8": dot_bytes,
    "zip_low": lambda a, b, c: zipped(a, b)[:32],
    "zip_high": lambda a, b, c: zipped(a, b)[32:],
    "shift_right_by": lambda a, b, c: a.view(np.uint32) >> np.uint32(c[0] & 31),
    "nibble": lambda a, b, c: ((a >> 12 & 15) - 8).astype(F32),
}


@pytest.mark.parametrize("name", INTEGERS)
def test_integers(name: str) -> None:
    inputs = RNG.integers(-(2**31), 2**31, (3, 16)).astype(I32)
    found = results(integer_kernel, len(INTEGERS), inputs)[[*INTEGERS].index(name)]
    assert found.tobytes() == np.ascontiguousarray(INTEGERS[name](*inputs)).tobytes()


def test_products_of_bytes_at_their_ends() -> None:
    inputs = np.array([[-1] * 16, [-2139062144] * 16, [7] * 16], I32)  # 255 and -128 in each byte
    found = results(integer_kernel, len(INTEGERS), inputs)[[*INTEGERS].index("dot_u8_i8")]
    assert (found.view(I32) == 7 - 4 * 255 * 128).all()


@kernel()
def bf16_kernel(out: int, p: int) -> None:
    simd.store(out, simd.dot_bf16(simd.load(p), simd.load_i32(p + 64), simd.load_i32(p + 128)))


def test_products_of_bf16() -> None:
    total, x, y = (RNG.normal(size=count).astype(F32) for count in (16, 32, 32))
    one, two = to_bf16(x), to_bf16(y)
    inputs = np.concatenate((total, one.view(F32), two.view(F32)))
    wanted = total + (from_bf16(one).astype(np.float64) * from_bf16(two)).reshape(16, 2).sum(1)
    found = results(bf16_kernel, 1, inputs).view(F32)[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


@kernel()
def register_kernel(out: int, p: int) -> None:
    rows, bits = simd.registers_f32(16), simd.registers_i32(16)
    for i in range(16):
        rows[i] = simd.load(p + i * 64)
        bits[i] = simd.load_i32(p + i * 64)
    shuffles.transpose(bits)
    for i in range(16):
        simd.store(out + i * 64, rows[15 - i])
        simd.store_i32(out + 1024 + i * 64, bits[i])
    simd.store(out + 2048, shuffles.totals(rows))


def test_registers_transposed_and_summed() -> None:
    rows = RNG.normal(size=(16, 16)).astype(F32)
    found = results(register_kernel, 33, rows).view(F32)
    assert (found[:16] == rows[::-1]).all() and (found[16:32] == rows.T).all()
    np.testing.assert_array_equal(found[32], [by_halves(row) for row in rows])


@kernel(parallel=True)
def taking_kernel(seen: int, counter: int, count: int, threads: int) -> None:
    for thread in prange(threads):
        number = shuffles.take(counter)
        while number < count:
            simd.poke_i32(seen + 4 * number, simd.peek_i32(seen + 4 * number) + thread + 1)
            number = shuffles.take(counter)


def test_each_number_is_taken_once() -> None:
    seen, counter = np.zeros(5000, I32), np.zeros(1, np.int64)
    taking_kernel(seen.ctypes.data, counter.ctypes.data, len(seen), numba.get_num_threads())
    assert seen.min() >= 1 and seen.max() <= numba.get_num_threads()
    assert counter[0] == len(seen) + numba.get_num_threads()
