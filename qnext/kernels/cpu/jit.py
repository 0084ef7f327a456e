"""How the CPU kernels are compiled: by Numba, and kept on disk for the next start.

Called by every kernel module. Invariant: what was compiled for other sources, another instruction set or
another Numba is never loaded.
"""

from __future__ import annotations

import gc
import importlib.util
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numba
import platformdirs
from numba.core import types
from numba.core.caching import FunctionCache
from numba.core.ccallback import CFunc
from numba.core.runtime.nrt import rtsys
from numba.extending import intrinsic

from . import isa
from .part import Part

log = logging.getLogger(__name__)
PLAIN: dict[str, Any] = {"error_model": "numpy", "boundscheck": False}


@cache
def folder(package: Path | None = None) -> Path:
    """Where the compiled kernels of a package (None: this one) are kept: in `QNEXT_KERNEL_CACHE`, or in the
    user's cache folder. Numba itself looks only at the file of the outermost function, so the sources of all
    that it may have called are part of the name."""
    digest = blake2b(digest_size=8)
    here = Path(__file__).parent
    for path in sorted(path for source in {here, package or here} for path in source.glob("*.py")):
        digest.update(path.read_bytes())
    digest.update(f"{isa.level()} {isa.has_bf16()} {numba.__version__}".encode())
    home = os.environ.get("QNEXT_KERNEL_CACHE") or platformdirs.user_cache_path("qnext") / "kernels"
    return Path(home) / digest.hexdigest()


@cache
def warn_of_slow_threads() -> None:
    """Weights are rounded in Numba's threads: OpenMP's where the system has its library, slower ones else."""
    if importlib.util.find_spec("numba.np.ufunc.omppool") is not None:
        try:
            importlib.import_module("numba.np.ufunc.omppool")
            return
        except ImportError:
            pass
    log.warning(
        "weights are quantised up to twice as slowly without OpenMP's library: install libgomp "
        "(the package is libgomp1 on Debian, libgomp on Fedora)"
    )


@contextmanager
def kept(package: Path | None = None) -> Iterator[None]:
    """What is decorated here is cached in the package's `folder`."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(folder(package))
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before


class Cache(FunctionCache):
    """Numba's cache, but that what was compiled is loaded without first making known all that could be: most
    of the time that a first kernel takes."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        rtsys.initialize(target_context)  # what compiled code may call
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)


@contextmanager
def compiling() -> Iterator[None]:
    """`kept`, and no garbage is looked for meanwhile: the compiler makes objects by the million, all of them
    in use until it is done."""
    collects = gc.isenabled()
    gc.disable()
    try:
        with kept():
            yield
    finally:
        if collects:
            gc.enable()


def kernel(
    *, parallel: bool = False, fastmath: frozenset[str] = frozenset()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile a function when it is first called, once for each set of argument types. `fastmath`: liberties
    that LLVM may take with floats."""
    options: dict[str, Any] = {**PLAIN, "fastmath": set(fastmath)}

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        with kept(Path(function.__code__.co_filename).parent):
            compiled = numba.njit(function, parallel=parallel, nogil=True, **options)
            compiled._cache = Cache(function)
        return compiled  # type: ignore[no-any-return]

    return decorate


def compile_code(function: Callable[..., Any], kind: Any) -> CFunc:
    """Compile a function of a signature `kind`, for whoever calls its address."""
    with compiling():
        code = CFunc(function, (kind.args, kind.return_type), locals={}, options=PLAIN)
        code._cache = Cache(function)
        code.compile()
    return code


def inline(function: Callable[..., Any]) -> Callable[..., Any]:
    """A part of kernels: compiled into each that calls it. Python cannot call it, which saves much time."""
    options: dict[str, Any] = {**PLAIN, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    options["pipeline_class"] = Part
    compiled: Callable[..., Any] = numba.njit(**options)(function)
    return compiled


def pasted(function: Callable[..., Any]) -> Callable[..., Any]:
    """`inline` whatever its size: a call in the innermost loop would put all registers down."""
    compiled: Callable[..., Any] = numba.njit(inline="always", **PLAIN)(function)
    return compiled


def align_stack(build: Any) -> None:
    """What does not fit in the registers of the function that is being built is put down in lines of its own:
    else half of it lies across two, or does not, by where the caller's stack happens to end."""
    build.function.attributes.alignstack = 64
    build.function.attributes.add("nounwind")  # llvmlite forgets the former where there is none like this


def reader(kind: Any) -> Any:
    """A function for kernels: the NamedTuple of int64 that lies at an address."""
    found = types.NamedUniTuple(types.int64, len(kind._fields), kind)

    @intrinsic
    def read(_typing: Any, _address: Any) -> Any:
        def codegen(context: Any, build: Any, _signature: Any, values: Any) -> Any:
            align_stack(build)  # of a phase, and so of what is compiled into it
            place = build.inttoptr(values[0], context.get_value_type(found).as_pointer())
            return build.load(place, align=8)

        return found(types.int64), codegen

    return read
