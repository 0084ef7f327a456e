"""The kernels' tests of this folder once more at each lower level of instructions, and with tiles."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from qnext.kernels.cpu import isa

HERE = Path(__file__)
OTHERS = ("isa", "jit", "pairs", "team", "threads", "workspace")  # the same on all levels
ONCE = {HERE.name, *(f"test_{name}.py" for name in OTHERS)}
FILES = sorted(path.name for path in HERE.parent.glob("test_*.py") if path.name not in ONCE)
LOWER = [level for level in isa.LEVELS if level != isa.level() and isa.has(level)]
# Files of which a level makes something else than the one below it; where nothing stands, all of them.
OWN = {"avx2": ["test_experts.py", "test_linear.py", "test_tiles.py"]}
CASES = [(file, level) for level in LOWER for file in OWN.get(level, FILES)]
TILES = "tiles"
IN_TILES = ["test_experts.py", "test_linear.py"]  # where there is no unit, vectors do it; codes alone
CASES += [] if isa.uses_tiles() else [(file, TILES) for file in IN_TILES]

Runs = dict[tuple[str, str], "Future[subprocess.CompletedProcess[str]]"]


def run(file: str, level: str) -> subprocess.CompletedProcess[str]:
    only, asked = (["-k", "True"], {"QNEXT_TILES": "1"}) if level == TILES else ([], {"QNEXT_ISA": level})
    words = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *only, str(HERE.parent / file)]
    return subprocess.run(
        [sys.executable, *words],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        cwd=HERE.parents[3],
    )


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> Iterator[Runs]:
    """Those that were asked for, two at a time: nearly all of it is compiling, which one core does."""
    asked = [item.callspec.params for item in request.session.items if item.path == HERE]  # type: ignore[attr-defined]
    with ThreadPoolExecutor(2) as pool:
        yield {(each["file"], each["level"]): pool.submit(run, each["file"], each["level"]) for each in asked}
        pool.shutdown(cancel_futures=True)


@pytest.mark.timeout(900)  # all is compiled anew, on a machine that may be busy
@pytest.mark.parametrize(("file", "level"), CASES)
def test_on_a_lower_level(file: str, level: str, runs: Runs) -> None:
    done = runs[file, level].result()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
