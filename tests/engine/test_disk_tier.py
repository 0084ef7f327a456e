"""The tier on disk over restarts. What all tiers do is in `test_tier.py`."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qnext.engine.disk_tier import DiskTier
from qnext.engine.entry_folder import ASIDE, WHOLE

from .entries import SIZE, entry, held, keys, same
from .restarts import CHILD, FAMILY, FILE, GRANDCHILD, ROOT, SIBLING, Restarts


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Restarts]:
    restarts = Restarts(tmp_path / "home" / "tier")
    yield restarts
    for tier in restarts.tiers:
        tier.close()


def test_a_restart_finds_everything(disk: Restarts) -> None:
    tier = disk.restart(*FAMILY, entry(9, salt="other"))
    assert held(tier) == keys(*FAMILY, entry(9, salt="other")) == disk.files()
    assert all(same(tier.get(each.header.key), each) for each in FAMILY)
    assert not +tier.counts


def test_recency_survives_a_restart(disk: Restarts) -> None:
    a, b, c, d = (entry(token) for token in range(4))
    tier = disk.start()
    for each in (a, b, c, d):
        tier.put(each)
    tier.get(b.header.key)  # perhaps still in the queue
    tier.close()
    tier.get(a.header.key)  # surely on disk
    tier.put(c)
    assert [header.tokens for header in disk.start().headers()] == [(2,), (0,), (1,), (3,)]
    assert held(disk.start(3 * FILE)) == keys(a, b, c)
    disk.tiers[-1].close()
    assert disk.files() == keys(a, b, c)


def test_another_model_has_another_folder(disk: Restarts) -> None:
    disk.restart(*FAMILY).close()
    other = DiskTier(disk.root, "cd34", 1 << 20)
    assert not held(other)
    other.close()
    shutil.copy(disk.file(ROOT), disk.root / "cd34")
    other = DiskTier(disk.root, "cd34", 1 << 20)
    other.close()
    assert not held(other) and not list((disk.root / "cd34").iterdir())


def test_files_stay_under_the_limit(disk: Restarts) -> None:
    tier = disk.start(limit=5 * FILE)
    rng = random.Random(1)
    for token in range(60):
        tier.put(entry(token, kv=rng.randrange(SIZE)))
    tier.close()
    assert disk.files() == held(tier)
    assert 3 * FILE < sum(path.stat().st_size for path in disk.own.iterdir()) <= 5 * FILE


def flip_early(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[30] ^= 1
    path.write_bytes(content)


def flip_late(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 0x10
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flipped in the header": flip_early,
    "flipped in the state": flip_late,
    "cut": lambda path: os.truncate(path, 500),
    "empty": lambda path: path.write_bytes(b""),
    "foreign": lambda path: path.write_bytes(b"hello" * 300),
    "gone": lambda path: path.unlink(),
    "of another entry": lambda path: shutil.copy(path.parent / (SIBLING.header.key + WHOLE), path),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("when", ["before the start", "while running"])
def test_damage_costs_the_entry_and_its_descendants(disk: Restarts, damage: str, when: str) -> None:
    tier = disk.restart(*FAMILY)
    if when == "before the start":
        tier.close()
    DAMAGE[damage](disk.file(CHILD))
    if when == "before the start":
        tier = disk.start()
    assert tier.get(CHILD.header.key) is None and tier.get(GRANDCHILD.header.key) is None
    assert held(tier) == keys(ROOT, SIBLING)
    assert same(tier.get(ROOT.header.key), ROOT) and same(tier.get(SIBLING.header.key), SIBLING)
    tier.put(CHILD)  # computed again
    assert held(tier) == keys(ROOT, SIBLING, CHILD)
    tier.close()
    assert disk.files() == keys(ROOT, SIBLING, CHILD) and same(tier.get(CHILD.header.key), CHILD)


def test_random_damage_is_never_given(disk: Restarts) -> None:
    disk.restart(*FAMILY).close()
    whole, rng = disk.file(CHILD).read_bytes(), random.Random(2)
    for _ in range(200):
        content = bytearray(whole)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        disk.file(CHILD).write_bytes(content[: rng.choice([len(content), rng.randrange(len(content))])])
        tier = disk.start()
        assert tier.get(CHILD.header.key) is None
        tier.close()
        assert not disk.file(CHILD).exists() and disk.file(ROOT).exists()


def test_strangers_in_the_folder_are_left_alone(disk: Restarts) -> None:
    disk.restart(ROOT).close()
    (disk.own / "notes.txt").write_text("mine")
    (disk.own / f"x.1{ASIDE}").write_text("half")
    assert held(disk.start()) == keys(ROOT)
    assert disk.files() == keys(ROOT) | {"notes"}
