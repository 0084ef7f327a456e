"""A peer as a child process: what it printed, and the most memory it held.

Used by the drivers. Invariant: failure comes back as a line for the table, never as an exception.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .quiet import first, turn


@dataclass(frozen=True)
class Ended:
    """A child that ended: its exit code (negative: the signal), output, errors and peak resident memory."""

    code: int
    out: str
    err: str
    peak_rss_gib: float

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The lines of the output that are JSON objects."""
        return [json.loads(line) for line in self.out.splitlines() if line.startswith("{")]

    @property
    def complaint(self) -> str:
        """The last that it said, for a line that reports a failure."""
        last = [line for line in self.err.splitlines() if line.strip()][-1:]
        return f"exit {self.code}: {last[0] if last else 'no message'}"


ROOT = Path(__file__).parents[2]
POLL_SECONDS = 0.05


def run(words: list[str], environment: dict[str, str] | None = None, *, timed: bool = False) -> Ended:
    """Run a program to its end, in the root of this repository; a `timed` one in its turn."""
    env = {**os.environ, **(environment or {})}
    with (
        turn() if timed else nullcontext(),
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as err,
    ):
        child = subprocess.Popen(first(words) if timed else words, stdout=out, stderr=err, env=env, cwd=ROOT)
        peak = 0
        # polled, since what the system reports at the end counts the parent's memory before the child's began
        while child.poll() is None:
            peak = max(peak, _most_resident(child.pid))
            time.sleep(POLL_SECONDS)
        out.seek(0)
        err.seek(0)
        return Ended(child.returncode, out.read(), err.read(), round(peak / 2**20, 2))


def _most_resident(pid: int) -> int:
    """The most KiB that a process has held so far; 0 once it has ended."""
    try:
        with open(f"/proc/{pid}/status") as file:
            return next((int(line.split()[1]) for line in file if line.startswith("VmHWM")), 0)
    except OSError:
        return 0


def missing(*needed: str | Path | None) -> str | None:
    """Why a peer cannot run: the first file that it needs and that is not there."""
    for path in needed:
        if path is None:
            return "no path given"
        if not Path(path).exists():
            return f"{path}: no such file"
    return None
