"""Teams run every share of every phase once, in order, whoever helps and however late."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from array import array

import numba
import pytest
import torch

from qnext.kernels.cpu.simd import poke_word, word
from qnext.kernels.cpu.task import Task
from qnext.kernels.cpu.team import Team, add, leave_cores_to_kernels

SHARES = 8  # that a job has room for


def first(job: int, share: int, shares: int) -> None:
    """Counts, in a place of its share's own."""
    poke_word(job + 64 * share, word(job + 64 * share) + 1)


def second(job: int, share: int, shares: int) -> None:
    """Wrong unless all shares of the first phase are done: each adds what it finds of all of them."""
    total = 0
    for i in range(shares):
        total += word(job + 64 * i)
    add(job + 64 * 7 + 8, total)


task = Task(first, second)


def run(team: Team, threads: int, rounds: int, most: int = 99) -> tuple[list[int], int]:
    """-> how often each share was run, and what the second phases have found in all."""
    job = array("q", [0] * (8 * SHARES))
    before = numba.get_num_threads()
    numba.set_num_threads(threads)
    try:
        calls = task.calls(job, most)
        for _ in range(rounds):
            team.run(calls)
    finally:
        numba.set_num_threads(before)
    return [job[8 * i] for i in range(min(threads, most))], job[8 * 7 + 1]


@pytest.mark.parametrize("threads, most", [(1, 99), (2, 99), (2, 1)])
def test_every_share_is_run_once_and_phases_wait_for_each_other(threads: int, most: int) -> None:
    rounds, shares = 3000, min(threads, most)
    counts, found = run(Team(), threads, rounds, most)
    assert counts == [rounds] * shares
    assert found == sum(range(1, rounds + 1)) * shares * shares


def test_a_helper_that_sleeps_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    team = Team()
    run(team, 2, 1)
    (helper,) = team._helpers
    for _ in range(3):
        deadline = time.monotonic() + 10
        while not helper._asleep and time.monotonic() < deadline:
            time.sleep(0.001)
        assert helper._asleep
        counts, _ = run(team, 2, 50)
        assert counts == [50, 50]


def test_nobody_waits_for_a_helper_that_never_comes() -> None:
    """As after a fork, which takes no threads along."""
    team = Team()
    team._helpers.append(Absent())  # type: ignore[arg-type]
    counts, found = run(team, 2, 20)
    assert counts == [20, 20] and found == sum(range(1, 21)) * 4


class Absent:
    def wake(self) -> None: ...


def test_teams_work_beside_each_other() -> None:
    results: list[tuple[list[int], int]] = []
    several = [threading.Thread(target=lambda: results.append(run(Team(), 2, 500))) for _ in range(4)]
    for thread in several:
        thread.start()
    for thread in several:
        thread.join(60)
    assert results == [([500, 500], sum(range(1, 501)) * 4)] * 4


def test_helpers_end_with_their_team() -> None:
    team = Team()
    run(team, 2, 1)
    thread = team._helpers[0]._thread
    del team
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


def test_torch_leaves_the_cores_in_one_thread_alone() -> None:
    found: list[int] = []
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)

        def work() -> None:
            leave_cores_to_kernels()
            found.append(torch.get_num_threads())

        for run_in_thread in (work, lambda: found.append(torch.get_num_threads())):
            thread = threading.Thread(target=run_in_thread)
            thread.start()
            thread.join()
        assert found == [1, 3] and torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


PROGRAM = """
import numba
from tests.kernels.cpu.test_team import Team, run
print(numba.config.NUMBA_NUM_THREADS, *run(Team(), 4, 300))
"""


def test_more_threads_than_cores() -> None:
    environment = {**os.environ, "NUMBA_NUM_THREADS": "4"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    assert done.stdout.split("\n")[0] == f"4 {[300] * 4} {sum(range(1, 301)) * 16}"
