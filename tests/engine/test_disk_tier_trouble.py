"""The tier on disk when the disk is slow, full or gone, and when the process is killed."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import pytest

from qnext.engine import disk_tier
from qnext.engine.disk_tier import DiskTier
from qnext.engine.entry_folder import EntryFolder
from qnext.engine.tier import Entry

from .entries import FINGERPRINT, SIZE, entry, held, keys, same
from .restarts import CHILD, FAMILY, FILE, GRANDCHILD, ROOT, SIBLING, Restarts


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Restarts]:
    restarts = Restarts(tmp_path / "home" / "tier")
    yield restarts
    for tier in restarts.tiers:
        tier.close()


class Gate:
    """Stops the writer at each entry until the test lets it go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.open = Event(), Event()
        write = EntryFolder.write

        def gated(folder: EntryFolder, what: Entry) -> None:
            self.reached.set()
            assert self.open.wait(30)
            write(folder, what)

        monkeypatch.setattr(EntryFolder, "write", gated)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch, disk: Restarts) -> Iterator[Gate]:
    made = Gate(monkeypatch)
    yield made
    made.open.set()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_what_waits_is_given_from_the_queue(disk: Restarts, gate: Gate) -> None:
    tier = disk.start()
    for each in FAMILY:
        tier.put(each)
    assert gate.reached.wait(30)
    assert all(tier.get(each.header.key) is each for each in FAMILY)
    gate.open.set()
    until(lambda: tier.get(SIBLING.header.key) is not SIBLING)
    assert same(tier.get(SIBLING.header.key), SIBLING)


def test_a_full_queue_drops_the_oldest(disk: Restarts, gate: Gate) -> None:
    tier = disk.start(queue=4 * SIZE)
    first, *more = (entry(token) for token in range(7))
    tier.put(first)
    assert gate.reached.wait(30)
    for each in more:
        tier.put(each)
    assert held(tier) == keys(first, *more[3:]) and tier.counts["dropped"] == 3
    gate.open.set()
    tier.close()
    assert disk.files() == keys(first, *more[3:])


def test_a_full_queue_keeps_what_others_need(disk: Restarts, gate: Gate) -> None:
    tier = disk.start(queue=3 * SIZE)
    tier.put(ROOT)
    assert gate.reached.wait(30)
    for each in (CHILD, SIBLING, GRANDCHILD):
        tier.put(each)
    assert held(tier) == keys(ROOT, CHILD, GRANDCHILD)  # the child is older, but the grandchild needs it
    tier.put(entry(8, parent=GRANDCHILD))  # nothing can be dropped but itself
    assert held(tier) == keys(ROOT, CHILD, GRANDCHILD) and tier.counts["dropped"] == 2
    gate.open.set()
    assert held(disk.restart()) <= keys(*FAMILY)


def test_one_entry_may_be_larger_than_the_queue(disk: Restarts) -> None:
    tier = disk.start(queue=1)
    tier.put(ROOT)
    tier.close()
    assert disk.files() == keys(ROOT) and not +tier.counts


def test_evicted_while_it_is_written(disk: Restarts, gate: Gate) -> None:
    tier = disk.start(limit=FILE)
    one, other = entry(1), entry(2)
    tier.put(one)
    assert gate.reached.wait(30)
    tier.put(other)
    assert held(tier) == keys(other) and tier.get(one.header.key) is None
    tier.put(one)  # and back again
    assert held(tier) == keys(one)
    gate.open.set()
    tier.close()
    assert disk.files() == keys(one) and same(tier.get(one.header.key), one)


def test_close_is_bounded(disk: Restarts, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_tier, "CLOSE_SECONDS", 0.1)
    tier = disk.start()
    for each in FAMILY:
        tier.put(each)
    assert gate.reached.wait(30)
    began = time.monotonic()
    tier.close()
    assert time.monotonic() - began < 5
    assert tier.counts["dropped"] == 3
    tier.put(entry(9))
    assert tier.counts["refused"] == 1
    gate.open.set()
    until(lambda: disk.file(ROOT).exists())


def fail(monkeypatch: pytest.MonkeyPatch, call: str, code: int) -> None:
    def failing(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, failing)


TROUBLE = {
    "full": ("fsync", errno.ENOSPC),
    "read-only": ("open", errno.EROFS),
    "broken": ("rename", errno.EIO),
}


@pytest.mark.parametrize("case", TROUBLE)
def test_trouble_with_writing(
    disk: Restarts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    tier = disk.start()
    with monkeypatch.context() as patch:
        fail(patch, *TROUBLE[case])
        for token in range(5):
            tier.put(entry(token))
        until(lambda: not [*tier.headers()])  # no more: entries go while they are looked at
    assert +tier.counts == {"failed": 5}
    assert [record.levelno for record in caplog.records] == [logging.WARNING], "said once"
    tier.put(entry(1))  # the disk is well again
    tier.close()
    assert disk.files() == keys(entry(1))


def test_a_lost_parent_takes_those_who_wait(
    disk: Restarts, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = disk.start()
    for each in (*FAMILY, entry(8)):
        tier.put(each)
    assert gate.reached.wait(30)
    with monkeypatch.context() as patch:
        fail(patch, "rename", errno.EIO)
        gate.open.set()
        until(lambda: not [*tier.headers()])  # no more: entries go while they are looked at
    assert tier.counts["failed"] == 2  # the root and the stranger: the rest was not tried
    tier.put(CHILD)
    assert tier.counts["refused"] == 1 and ROOT.header.key not in tier
    tier.put(ROOT)
    tier.put(CHILD)
    tier.close()
    assert disk.files() == keys(ROOT, CHILD)


def test_a_folder_that_cannot_be_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    tier = DiskTier(tmp_path / "file" / "tier", FINGERPRINT, 1 << 20)
    for each in FAMILY:
        tier.put(each)
        tier.get(each.header.key)
    tier.close()
    assert not held(tier) and tier.counts["failed"] >= 2
    assert len(caplog.records) == 2  # to open, and to write
    assert str(tmp_path / "file") in caplog.text


def test_the_folder_is_removed(disk: Restarts, caplog: pytest.LogCaptureFixture) -> None:
    tier = disk.restart(*FAMILY, entry(8), entry(9))
    shutil.rmtree(disk.root)
    for each in (ROOT, entry(8)):
        assert tier.get(each.header.key) is None
    assert held(tier) == keys(entry(9)) and len(caplog.records) == 1
    tier.put(ROOT)
    tier.close()
    assert disk.files() == keys(ROOT)


LIMITED = """
import resource, sys
from pathlib import Path
from qnext.engine.disk_tier import DiskTier
from tests.engine.entries import FINGERPRINT, entry, same
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
tier = DiskTier(Path(sys.argv[1]), FINGERPRINT, 1 << 20)
small, large = entry(1), entry(2, kv=30_000)
tier.put(large)
tier.put(small)
tier.close()
assert [header.tokens for header in tier.headers()] == [(1,)] and +tier.counts == {"failed": 1}
assert same(tier.get(small.header.key), small)
"""


def run(script: str, *arguments: str) -> str:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-W", "error", "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_write_that_breaks_off(disk: Restarts) -> None:
    """The kernel itself cuts the file short."""
    run(LIMITED, str(disk.root))
    assert disk.files() == keys(entry(1))


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from qnext.engine.disk_tier import DiskTier
from qnext.engine.entry_folder import ASIDE
from tests.engine.entries import FINGERPRINT, entry, held, payload

MIB, KILLS = 1 << 20, 14
folder, rng = Path(sys.argv[1]), random.Random(3)

def serve(kill: int) -> None:
    tier, above = DiskTier(folder, FINGERPRINT, 60 * MIB), None
    for token in range(1000):
        above = entry(kill, token, parent=above if token % 4 else None, kv=2 * MIB, state=MIB)
        tier.put(above)
        while tier._queued_bytes > 10 * MIB:
            time.sleep(0.001)

def names() -> set[str]:
    return {path.name for path in folder.rglob("*") if not path.is_dir()}

def wait(before: set[str], files: int) -> None:
    # until it has written so many more and is at another one; then any moment
    end = time.monotonic() + 10
    while time.monotonic() < end:
        time.sleep(0.0003)
        new = names() - before
        if len(new) > files and any(name.endswith(ASIDE) for name in new):
            break
    time.sleep(0.002 * rng.random() * rng.randrange(3))

torn = whole = 0
for kill in range(KILLS):
    before = names()
    child = os.fork()
    if not child:
        serve(kill)
        os._exit(1)
    wait(before, rng.randrange(8))
    os.kill(child, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    torn += len(list(folder.rglob("*" + ASIDE)))
    tier = DiskTier(folder, FINGERPRINT, 60 * MIB)
    for key in held(tier):
        found = tier.get(key)
        assert found is not None and found.header.key == key
        assert found.kv.equal(payload(key, 1, 2 * MIB)) and found.state.equal(payload(key, 2, MIB))
        whole += 1
    tier.close()
    assert not tier.counts["damaged"] and not tier.counts["failed"], tier.counts
    assert {path.stem for path in (folder / FINGERPRINT).iterdir()} == held(tier)
print(torn, whole)
"""


def test_killed_at_any_moment(disk: Restarts) -> None:
    torn, whole = map(int, run(KILLED, str(disk.root)).split())
    assert torn >= 3, "the test must have hit writes in their midst"
    assert whole >= 20
