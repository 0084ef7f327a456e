"""The kernels' tests of this folder once more at each lower level of instructions, and with a matrix unit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from qnext.kernels.cpu import isa
from qnext.kernels.cpu.jit import folder

HERE = Path(__file__)
OTHERS = ("isa", "jit", "pairs", "rounding", "team", "threads", "unit", "workspace")  # the same on all levels
ONCE = {HERE.name, *(f"test_{name}.py" for name in OTHERS)}
FILES = sorted(path.name for path in HERE.parent.glob("test_*.py") if path.name not in ONCE)
LOWER = [level for level in isa.LEVELS if level != isa.level() and isa.has(level)]
# Files that are run together, as each run imports torch; what is nowhere else is in the last group.
PRODUCTS = ["test_experts.py", "test_linear.py", "test_tiles.py"]
TOGETHER = [["test_attention.py"], PRODUCTS]
TOGETHER.append([name for name in FILES if not any(name in group for group in TOGETHER)])
# Every level has products of its own. All else is made alike, for few registers or for many: see `test_isa`.
NARROW = ["generic", "avx2"]
RUN = [isa.level(), *LOWER]
CASES = [
    (group, level)
    for level in LOWER
    for group in TOGETHER
    if group is PRODUCTS or level not in NARROW or not set(NARROW) & set(RUN[: RUN.index(level)])
]
UNIT = "unit"  # amx, as far as a machine without it goes: in products, codes alone use the unit
CASES += [] if isa.has("amx") else [(PRODUCTS, UNIT), ([*TOGETHER[0], *TOGETHER[2]], UNIT)]

Case = tuple[tuple[str, ...], str]


def run(files: list[str], level: str) -> subprocess.CompletedProcess[str]:
    more, asked = [], {"QNEXT_ISA": level}
    if level == UNIT:
        more = ["-p", "tests.kernels.cpu.soft_unit", *(["-k", "not False"] if files == PRODUCTS else [])]
        asked = {"NUMBA_NUM_THREADS": "1", "QNEXT_KERNEL_CACHE": str(folder().with_suffix(".unit"))}
    paths = [str(HERE.parent / name) for name in files]
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *more, *paths],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        cwd=HERE.parents[3],
    )


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest) -> Iterator[dict[Case, Future[subprocess.CompletedProcess[str]]]]:
    """Those that were asked for, two at a time: nearly all of it is compiling, which one core does."""
    asked = [item.callspec.params for item in request.session.items if item.path == HERE]  # type: ignore[attr-defined]
    with ThreadPoolExecutor(2) as pool:
        yield {
            (tuple(each["files"]), each["level"]): pool.submit(run, each["files"], each["level"])
            for each in asked
        }
        pool.shutdown(cancel_futures=True)


@pytest.mark.timeout(900)  # all is compiled anew, on a machine that may be busy
@pytest.mark.parametrize(("files", "level"), CASES, ids=[f"{level}-{files[0]}" for files, level in CASES])
def test_on_a_lower_level(
    files: list[str], level: str, runs: dict[Case, Future[subprocess.CompletedProcess[str]]]
) -> None:
    done = runs[tuple(files), level].result()
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
