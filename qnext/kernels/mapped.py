"""A file as memory: there at once, and soon in huge pages, like all weights (see `memory`).

Called by `model` for packed weights on Linux. To fill gigabytes of huge pages takes seconds, many on a
machine whose memory is in pieces. So the file is mapped first and used as it is, while a thread reads it
once more, piece by piece, into huge pages that then take the place of the mapping. Invariant: whoever reads
an address meanwhile finds the same bytes there; the kernel changes the pages below in one go.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import sys
import threading
import time
import weakref
from pathlib import Path

import torch
from torch import Tensor

HUGE = 2 << 20
PIECE, SHARE = 32 * HUGE, 16  # what is moved at a time: so many bytes, or a part of a smaller file
NONE, READ_WRITE = 0, mmap.PROT_READ | mmap.PROT_WRITE
PRIVATE, FIXED, ANONYMOUS, NORESERVE = 0x02, 0x10, 0x20, 0x4000
MAYMOVE_FIXED, MADV_HUGEPAGE = 3, 14
FAILED = ctypes.c_void_p(-1).value
log = logging.getLogger(__name__)


class Mapping:
    """`size` bytes of a file at `address`, a multiple of 2 MiB. They are gone when this is."""

    def __init__(self, file: Path) -> None:
        self._libc = _libc()
        self._source = os.open(file, os.O_RDONLY)
        self.file, self.size = file, os.fstat(self._source).st_size
        self._whole = -(-self.size // HUGE) * HUGE + HUGE
        self._begin = self._map(None, self._whole, NONE, PRIVATE | ANONYMOUS | NORESERVE, -1)
        self.address = -(-self._begin // HUGE) * HUGE
        self.piece = min(max(self.size // SHARE // HUGE, 1) * HUGE, PIECE)  # in memory twice for a moment
        self._map(self.address, self.size, READ_WRITE, PRIVATE | FIXED, self._source)

    def __del__(self) -> None:
        self._libc.munmap(self._begin, self._whole)
        os.close(self._source)

    def settle(self, at: int) -> None:
        """Bring the piece from byte `at` on into huge pages. Raises ValueError if the file has become
        shorter, OSError where there is no memory: the mapping then stays as it is."""
        size = min(self.piece, self.size - at)
        room = -(-size // HUGE) * HUGE + HUGE
        begin = self._map(None, room, READ_WRITE, PRIVATE | ANONYMOUS, -1)
        to = left = -(-begin // HUGE) * HUGE
        try:
            self._libc.madvise(to, room - HUGE, MADV_HUGEPAGE)
            view = memoryview((ctypes.c_ubyte * size).from_address(to)).cast("B")
            while view:
                count = os.preadv(self._source, [view], at + size - len(view))
                if not count:
                    raise ValueError(f"{self.file}: became shorter while it was read")
                view = view[count:]
            if self._libc.mremap(to, size, size, MAYMOVE_FIXED, self.address + at) == FAILED:
                raise OSError(ctypes.get_errno(), "mremap")
            left += -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        finally:  # what was moved away is not ours any more: others may have memory there by now
            for first, last in ((begin, to), (left, begin + room)):
                if first < last:
                    self._libc.munmap(first, last - first)

    def _map(self, where: int | None, size: int, access: int, flags: int, source: int) -> int:
        found = self._libc.mmap(where, size, access, flags, source, 0)
        if found == FAILED:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(self.file))
        return int(found)


def map_file(file: Path) -> Tensor:
    """The bytes of a file that is not empty. Whoever writes to them writes to memory, never to the file."""
    mapping = Mapping(file)
    content = (ctypes.c_ubyte * mapping.size).from_address(mapping.address)
    content.mapping = mapping  # type: ignore[attr-defined]  # lives as long as what it holds
    thread = threading.Thread(target=_settle, args=(weakref.ref(mapping),), name="weights", daemon=True)
    thread.start()
    return torch.frombuffer(content, dtype=torch.uint8)


def supported() -> bool:
    """Whether files can be mapped so: on Linux."""
    return sys.platform == "linux"


def _settle(owner: weakref.ref[Mapping]) -> None:
    """Bring all pieces into huge pages, as long as the mapping lives."""
    begun, at = time.monotonic(), 0
    while (mapping := owner()) is not None and at < mapping.size:
        try:
            mapping.settle(at)
        except (OSError, ValueError) as error:
            log.warning("weights stay in small pages, which are slower: %s", error)
            return
        at += mapping.piece
        name = mapping.file.name
        del mapping  # else it lived on for a piece more
    if at:
        log.info("%s is in huge pages after %.1f s", name, time.monotonic() - begun)


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    word, number = ctypes.c_void_p, ctypes.c_int
    libc.mmap.restype = libc.mremap.restype = word
    libc.mmap.argtypes = [word, ctypes.c_size_t, number, number, number, ctypes.c_long]
    libc.mremap.argtypes = [word, ctypes.c_size_t, ctypes.c_size_t, number, word]
    libc.munmap.argtypes = [word, ctypes.c_size_t]
    libc.madvise.argtypes = [word, ctypes.c_size_t, number]
    return libc
