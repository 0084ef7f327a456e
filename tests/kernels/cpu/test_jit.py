"""Compiled kernels are kept apart by all that they depend on, and found again."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest

from qnext.kernels.cpu import isa, jit, simd
from qnext.kernels.cpu.dot import code_of


def test_the_folder_differs_by_level_sources_and_numba(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QNEXT_KERNEL_CACHE", str(tmp_path))
    sources = tmp_path / "sources"
    sources.mkdir()
    (sources / "jit.py").write_text("one")
    monkeypatch.setattr(jit, "__file__", str(sources / "jit.py"))
    found = [jit.folder.__wrapped__()]
    assert found[0] == jit.folder.__wrapped__() and found[0].parent == tmp_path
    monkeypatch.setattr(isa, "has_bf16", lambda: "other")
    found.append(jit.folder.__wrapped__())
    monkeypatch.setattr(isa, "level", lambda: "other")
    found.append(jit.folder.__wrapped__())
    monkeypatch.setattr(jit.numba, "__version__", "0.0")
    found.append(jit.folder.__wrapped__())
    (sources / "part.py").write_text("two")
    found.append(jit.folder.__wrapped__())
    assert len(set(found)) == len(found)


PROGRAM = """
from pathlib import Path
from qnext.kernels.cpu import jit

@jit.inline
def twice(x):
    return 2 * x

@jit.kernel()
def thrice(x):
    return x + twice(x)

assert thrice(7) == 21
print(sum(thrice.stats.cache_hits.values()), jit.folder(Path(__file__).parent))
"""


def test_a_second_process_finds_what_the_first_compiled(tmp_path: Path) -> None:
    program, lines = tmp_path / "program.py", []
    program.write_text(PROGRAM)
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, program],
            env={**os.environ, "QNEXT_KERNEL_CACHE": str(tmp_path)},
            capture_output=True,
            text=True,
            check=True,
        )
        lines.append(done.stdout.split())
    (before, folder), (after, same) = lines
    assert (before, after) == ("0", "1") and folder == same
    assert [path for path in Path(folder).rglob("*") if path.suffix == ".nbc"]


@pytest.mark.parametrize(("bits", "coded"), [(4, True), (8, True), (4, False), (16, False)])
def test_products_close_over_numbers_alone(bits: int, coded: bool) -> None:
    """Numba's cache compares what functions close over: a compiled function is another in each process."""
    cells = code_of(bits, coded)._function.__closure__ or ()
    assert cells and all(isinstance(cell.cell_contents, int) for cell in cells)


@numba.njit
def add(p: int, out: int) -> None:
    sums = simd.registers_f32(2)
    for i in range(2):
        sums[i] = simd.load(p + 64 * i)
    simd.store(out, sums[0] + sums[1])


def test_what_a_kernel_puts_down_lies_in_lines_of_its_own() -> None:
    numbers, out = np.arange(32, dtype=np.float32), np.zeros(16, np.float32)
    add(numbers.ctypes.data, out.ctypes.data)
    assert out.tolist() == [float(16 + 2 * i) for i in range(16)]
    (compiled,) = add.inspect_llvm().values()
    assert "alignstack=64" in compiled


def square(x: int) -> int:
    return x * x


def test_a_part_is_compiled_into_its_callers_alone() -> None:
    twin, part = numba.njit(square), jit.inline(square)
    found = []
    for called in (twin, part):

        @numba.njit
        def add_squares(most: int) -> int:
            total = 0
            for x in range(most):
                total += called(x)  # noqa: B023  # read when it is compiled, which is now
            return total

        made = add_squares(10)
        (inner,) = called.overloads.values()
        engine = inner.library.codegen._engine
        found.append((made, engine.is_symbol_defined(inner.fndesc.llvm_func_name)))
    assert found == [(285, True), (285, False)]


@pytest.mark.parametrize("collects", [True, False])
def test_garbage_is_looked_for_again_after_compiling(collects: bool) -> None:
    before = gc.isenabled()
    try:
        (gc.enable if collects else gc.disable)()
        with pytest.raises(KeyError), jit.compiling():
            assert not gc.isenabled()
            raise KeyError("a compiler's error")
        assert gc.isenabled() == collects
    finally:
        (gc.enable if before else gc.disable)()


LOADED = """
import sys
from numba.core.base import BaseContext
from qnext.kernels.cpu.task import Code
from qnext.kernels.cpu.embedding import embedding

def refuse(*_):
    raise AssertionError("everything is made known")

if sys.argv[1] == "again":
    BaseContext.refresh = refuse
assert all(code.address for code in embedding._phases)
"""


def test_what_was_compiled_is_loaded_at_once(tmp_path: Path) -> None:
    """Numba would first make known all that it could compile, which takes longer than to load all kernels."""
    environment = {**os.environ, "QNEXT_KERNEL_CACHE": str(tmp_path)}
    for time in ("first", "again"):
        subprocess.run([sys.executable, "-c", LOADED, time], env=environment, check=True)
