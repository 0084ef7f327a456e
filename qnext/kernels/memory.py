"""Memory that is read at full speed: in huge pages, since a core that goes through gigabytes in pages of
4 KiB waits for their addresses (35 instead of 56 GB/s were seen).

Called by `model` for weights and caches on a CPU. Invariant: what is taken here is zero until it is written.
"""

from __future__ import annotations

import mmap
import sys
from math import prod

import torch
from torch import Tensor

LARGE = 4 << 20  # bytes; below, pages do not matter


def available() -> int:
    """Bytes that may be taken without pushing anything out; no limit where the system does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            facts = dict(line.split(":") for line in file)
        return int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return sys.maxsize


def take(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A zeroed contiguous tensor on the CPU, aligned to 64 bytes if it is large."""
    size = prod(shape) * dtype.itemsize
    if size < LARGE:
        return torch.zeros(shape, dtype=dtype)
    block = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory has small pages
    if hasattr(mmap, "MADV_HUGEPAGE"):  # Linux
        block.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(block, dtype=torch.uint8).view(dtype).view(shape)
