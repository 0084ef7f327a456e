"""Without OpenMP's library weights are rounded slower, and this is said once; torch keeps its own threads."""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys

import pytest

from qnext.kernels.cpu import jit


def test_a_missing_library_is_named_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def absent(name: str) -> None:
        raise ImportError(f"libgomp.so.1, wanted by {name}")

    monkeypatch.setattr(importlib, "import_module", absent)
    jit.warn_of_slow_threads.cache_clear()
    with caplog.at_level(logging.WARNING):
        jit.warn_of_slow_threads()
        jit.warn_of_slow_threads()
    assert len(caplog.records) == 1 and "libgomp1" in caplog.text
    jit.warn_of_slow_threads.cache_clear()


def test_a_library_that_is_there_is_not_mentioned(caplog: pytest.LogCaptureFixture) -> None:
    jit.warn_of_slow_threads.cache_clear()
    jit.warn_of_slow_threads()
    assert not caplog.records


PROGRAM = """
import os
import torch

torch.set_num_threads(1)
import numba

from qnext.kernels.cpu.rounding import round_into
from qnext.kernels.cpu.workspace import Workspace
from qnext.kernels.packed import quantise

child = os.fork()
if not child:
    round_into(quantise(torch.zeros(1, 16, 32), "int8", 32), torch.ones(16, 32), torch.arange(16))
    os._exit(torch.get_num_threads())
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
Workspace()
print(numba.get_num_threads(), torch.get_num_threads())
"""


def test_torchs_threads_are_left_alone_also_after_a_fork() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "NUMBA_NUM_THREADS": "3"},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    assert done.stdout.split() == ["1", "3", "1"]
