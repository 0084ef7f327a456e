"""How the CPU kernels are compiled: by Numba, in threads of OpenMP, kept on disk for the next start.

Called by every kernel module. Invariant: what was compiled for other sources, another instruction set or
another Numba is never loaded.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numba
import platformdirs
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from . import isa

log = logging.getLogger(__name__)
PLAIN: dict[str, Any] = {"error_model": "numpy", "boundscheck": False}


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


@cache
def warn_of_slow_threads() -> None:
    """Numba's threads are OpenMP's where the system has its library; else others take its place."""
    if importlib.util.find_spec("numba.np.ufunc.omppool") is not None:
        try:
            importlib.import_module("numba.np.ufunc.omppool")
            return
        except ImportError:
            pass
    log.warning(
        "kernels run up to twice as slowly without OpenMP's library: install libgomp "
        "(the package is libgomp1 on Debian, libgomp on Fedora)"
    )


@contextmanager
def _kept() -> Iterator[None]:
    """What is decorated here is cached in `folder`."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(folder())
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before


def kernel(*, parallel: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a function when it is first called, once for each set of argument types."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        with _kept():
            compiled: Callable[..., Any] = numba.njit(
                function, cache=True, parallel=parallel, nogil=True, **PLAIN
            )
        return compiled

    return decorate


def inline(function: Callable[..., Any]) -> Callable[..., Any]:
    """A part of kernels: compiled into each that calls it. Python cannot call it, which saves much time."""
    options: dict[str, Any] = {**PLAIN, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    compiled: Callable[..., Any] = numba.njit(**options)(function)
    return compiled


class Task:
    """Functions (job, thread, threads) -> None that all threads run at once, one function after the other,
    `job` being the address of some int64 numbers (see `reader`). They are compiled when first run, and by
    themselves: what a parallel loop calls is compiled five times over."""

    def __init__(self, *phases: Callable[[int, int, int], None]) -> None:
        self._phases = phases

    @cached_property
    def _addresses(self) -> array[int]:
        with _kept():
            compile_phase = numba.cfunc(types.void(*[types.int64] * 3), cache=True, **PLAIN)
            self._compiled = [compile_phase(phase) for phase in self._phases]  # they own the code
        return array("q", [int(each.address or 0) for each in self._compiled])

    def run(self, job: array[int], most: int, first: int = 0) -> None:
        """From phase `first` on, in all threads there are, but no more than `most`."""
        begin, count = self._addresses.buffer_info()
        threads = min(numba.get_num_threads(), most)
        _fork(begin + 8 * first, count - first, job.buffer_info()[0], threads)


def reader(kind: Any) -> Any:
    """A function for kernels: the NamedTuple of int64 that lies at an address."""
    found = types.NamedUniTuple(types.int64, len(kind._fields), kind)

    @intrinsic
    def read(_typing: Any, _address: Any) -> Any:
        def codegen(context: Any, build: Any, _signature: Any, values: Any) -> Any:
            place = build.inttoptr(values[0], context.get_value_type(found).as_pointer())
            return build.load(place, align=8)

        return found(types.int64), codegen

    return read


@intrinsic
def _call(_typing: Any, _address: Any, _job: Any, _thread: Any, _threads: Any) -> Any:
    """Call a task by its address."""

    def codegen(context: Any, build: Any, _signature: Any, values: Any) -> Any:
        word = ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [word] * 3)
        build.call(build.inttoptr(values[0], kind.as_pointer()), values[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), codegen


@intrinsic
def _word(_typing: Any, _address: Any) -> Any:
    """The int64 at an address."""

    def codegen(context: Any, build: Any, _signature: Any, values: Any) -> Any:
        return build.load(build.inttoptr(values[0], ir.IntType(64).as_pointer()), align=8)

    return types.int64(types.int64), codegen


@kernel(parallel=True)
def _fork(addresses, count, job, threads):  # type: ignore[no-untyped-def]
    for phase in range(count):
        address: int = _word(addresses + 8 * phase)  # type: ignore[call-arg]
        if threads == 1:
            _call(address, job, 0, 1)
        else:
            for thread in numba.prange(threads):
                _call(address, job, thread, threads)
