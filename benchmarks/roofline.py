"""What this machine can do at most: bytes read and numbers multiplied a second, measured now.

    python benchmarks/roofline.py [--threads 2] [--gib 2] [--seconds 1.0]

Prints one JSON line; `Stream` and `peaks` are what the benchmarks call that state a share of it. The
bandwidth is the best of three readers (a Numba loop, torch's sum, and four streams a thread that are asked
for ahead), each the median of its repeats over a buffer that no cache holds; a machine whose memory is shared
is only comparable within one run. Peaks are those of torch's matrix products, null where a type is not
multiplied here.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from statistics import median

import numba
import numpy as np
import torch
from torch import Tensor

from qnext.kernels.cpu.simd import fill, largest, load, prefetch_l2

SIZE = 4096  # of the square matrices
PATIENCE = 5  # seconds for a product
CHUNKS = 256
AHEAD = 512  # bytes


@numba.njit(parallel=True, fastmath=True, nogil=True)
def _read(words: np.ndarray) -> int:
    """Touch every word; chunks are many so that a thread that is held up does not hold up the others."""
    total = np.int64(0)
    length = words.size // CHUNKS
    for chunk in numba.prange(CHUNKS):
        part = np.int64(0)
        for i in range(chunk * length, (chunk + 1) * length):
            part += words[i]
        total += part
    return total


@numba.njit(parallel=True, fastmath=True, nogil=True)
def _read_ahead(address: int, size: int, found: np.ndarray) -> None:
    """The same by four streams in each chunk, a little of each asked for before it is read."""
    part = size // CHUNKS // 4
    for chunk in numba.prange(CHUNKS):
        one = address + chunk * 4 * part
        two, three, four = one + part, one + 2 * part, one + 3 * part
        total = fill(np.float32(0))
        for i in range(0, part, 64):
            prefetch_l2(one + i + AHEAD)
            prefetch_l2(two + i + AHEAD)
            prefetch_l2(three + i + AHEAD)
            prefetch_l2(four + i + AHEAD)
            total = (total + load(one + i)) + (load(two + i) + load(three + i)) + load(four + i)
        found[chunk] = largest(total)


def rates(work: Callable[[], object], amount: float, seconds: float) -> list[float]:
    """`amount` a second, repeated for about `seconds` and at least three times, after a first untimed one."""
    work()
    found: list[float] = []
    until = time.perf_counter() + seconds
    while len(found) < 3 or time.perf_counter() < until:
        begun = time.perf_counter()
        work()
        found.append(amount / (time.perf_counter() - begun))
    return found


class Stream:
    """A buffer that no cache holds, and three ways to read it."""

    def __init__(self, gib: float, threads: int) -> None:
        numba.set_num_threads(threads)
        torch.set_num_threads(threads)
        # written, not only promised: an untouched page would be read from one page of zeros
        words = np.ones(int(gib * 2**30) // 8, dtype=np.int64)
        floats = torch.from_numpy(words.view(np.float32))
        self.gigabytes = words.nbytes / 1e9
        found, place = np.zeros(CHUNKS, np.float32), (words.ctypes.data, words.nbytes)
        self.ways: dict[str, Callable[[], object]] = {
            "numba": lambda: _read(words),
            "torch": floats.sum,
            "streams": lambda: _read_ahead(*place, found),
        }

    def read(self) -> float:
        """GB/s now: once each way, the better one."""
        seconds = []
        for way in self.ways.values():
            begun = time.perf_counter()
            way()
            seconds.append(time.perf_counter() - begun)
        return self.gigabytes / min(seconds)


def bandwidth(gib: float = 2.0, threads: int = 2, seconds: float = 1.0) -> dict[str, float | str]:
    """Bytes read a second, in GB/s: the median of the better reader."""
    stream = Stream(gib, threads)
    found = {name: rates(way, stream.gigabytes, seconds) for name, way in stream.ways.items()}
    reader = max(found, key=lambda name: median(found[name]))
    return {
        "read_gb_s": round(median(found[reader]), 2),
        "read_gb_s_max": round(max(found[reader]), 2),
        "reader": reader,
    }


def peak(product: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype, seconds: float) -> float:
    """Giga-operations a second (a multiplication and an addition are two) of square matrix products. Large
    ones, unless they would take minutes: numbers that the processor has no instructions for."""
    rate = 0.0
    for size in (SIZE // 16, SIZE):
        one = torch.randint(-100, 100, (size, size)).to(dtype)
        rate = median(rates(lambda a=one: product(a, a), 2 * size**3 / 1e9, seconds))
        if PATIENCE * rate < 2 * SIZE**3 / 1e9:
            break
    return rate


def peaks(threads: int = 2, seconds: float = 1.0) -> dict[str, float | None]:
    """The peaks of three kinds of numbers."""
    torch.set_num_threads(threads)
    found: dict[str, float | None] = {}
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16), ("int8", torch.int8)):
        try:
            rate = peak(torch._int_mm if dtype == torch.int8 else torch.mm, dtype, seconds)
            found[f"{name}_gop_s"] = round(rate, 1)
        except RuntimeError:  # this build multiplies no such matrices
            found[f"{name}_gop_s"] = None
    return found


def measure(threads: int = 2, gib: float = 2.0, seconds: float = 1.0) -> dict[str, object]:
    """Bandwidth and peaks, with the machine's name."""
    return {
        "benchmark": "roofline",
        "device": processor(),
        "threads": threads,
        **bandwidth(gib, threads, seconds),
        **peaks(threads, seconds),
    }


def processor() -> str:
    """The processor's name and those of its instruction sets that decide which kernels run."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            facts = dict(
                line.split(":", 1) for line in file.read().split("\n\n")[0].splitlines() if ":" in line
            )
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    flags = set(facts.get("flags", "").split())
    known = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8") if name in flags]
    return f"{facts.get('model name', platform.machine())} ({', '.join(known)})"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--gib", type=float, default=2.0, help="size of the buffer that is read")
    parser.add_argument("--seconds", type=float, default=1.0, help="a measurement takes")
    given = parser.parse_args()
    print(json.dumps(measure(given.threads, given.gib, given.seconds)))


if __name__ == "__main__":
    main()
