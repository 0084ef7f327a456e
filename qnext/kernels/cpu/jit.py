"""How the CPU kernels are compiled: by Numba, in threads of OpenMP, kept on disk for the next start.

Called by every kernel module. Invariant: what was compiled for other sources, another instruction set or
another Numba is never loaded.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numba
import platformdirs

from . import isa


@cache
def folder() -> Path:
    """Where compiled kernels are kept: `QNEXT_KERNEL_CACHE`, or in the user's cache folder. Numba itself
    looks only at the file of the outermost function, so the sources of all are part of the name."""
    digest = blake2b(digest_size=8)
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    digest.update(f"{isa.level()} {isa.has_bf16()} {numba.__version__}".encode())
    home = os.environ.get("QNEXT_KERNEL_CACHE") or platformdirs.user_cache_path("qnext") / "kernels"
    return Path(home) / digest.hexdigest()


def kernel(*, parallel: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a function when it is first called, once for each set of argument types."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        before = numba.config.CACHE_DIR
        numba.config.CACHE_DIR = str(folder())
        try:
            compiled: Callable[..., Any] = numba.njit(
                function, cache=True, parallel=parallel, nogil=True, error_model="numpy", boundscheck=False
            )
        finally:
            numba.config.CACHE_DIR = before
        return compiled

    return decorate


def inline(function: Callable[..., Any]) -> Callable[..., Any]:
    """A part of kernels: compiled into each that calls it."""
    compiled: Callable[..., Any] = numba.njit(function, error_model="numpy", boundscheck=False)
    return compiled
