"""Every test of this folder once more at each lower level of instructions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qnext.kernels.cpu import isa


@pytest.mark.parametrize("level", [level for level in isa.LEVELS if level != isa.level() and isa.has(level)])
def test_on_lower_levels(level: str) -> None:
    folder = Path(__file__)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(folder.parent)]
    done = subprocess.run(
        [*command, f"--ignore={folder}"],
        env={**os.environ, "QNEXT_ISA": level},
        capture_output=True,
        text=True,
        cwd=folder.parents[3],
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
