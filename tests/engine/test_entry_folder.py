"""A folder's files: private, whole, and left alone while another process writes them."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from pathlib import Path

import pytest

from qnext.engine.entry_file import Damaged
from qnext.engine.entry_folder import ASIDE, WHOLE, EntryFolder

from .entries import FINGERPRINT, entry, same


@pytest.fixture
def folder(tmp_path: Path) -> EntryFolder:
    made = EntryFolder(tmp_path / "tier", FINGERPRINT)
    assert not list(made.scan())
    return made


def names(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "tier" / FINGERPRINT).iterdir()}


def test_writes_reads_and_removes(tmp_path: Path, folder: EntryFolder) -> None:
    one = entry(1, 2)
    key = one.header.key
    folder.write(one)
    folder.write(one)  # as another process may, too
    assert names(tmp_path) == {key + WHOLE} and same(folder.read(key), one)
    folder.touch(key, 12_345_678_901)
    (found,) = folder.scan()
    assert (found.key, found.header, found.used) == (key, one.header, 12_345_678_901)
    assert found.size == (tmp_path / "tier" / FINGERPRINT / (key + WHOLE)).stat().st_size
    folder.remove(key)
    folder.remove(key)
    folder.touch(key, 1)
    assert names(tmp_path) == set() and not list(folder.scan())
    with pytest.raises(FileNotFoundError):
        folder.read(key)


def test_prompts_are_private(tmp_path: Path, folder: EntryFolder) -> None:
    own = tmp_path / "tier" / FINGERPRINT
    folder.write(entry(1))
    (file,) = own.iterdir()
    assert [path.stat().st_mode & 0o777 for path in (own.parent, own, file)] == [0o700, 0o700, 0o600]
    own.chmod(0o755)
    list(folder.scan())
    assert own.stat().st_mode & 0o777 == 0o700


def test_what_a_dead_process_was_writing_is_cleared(tmp_path: Path, folder: EntryFolder) -> None:
    own = tmp_path / "tier" / FINGERPRINT
    dead, alive, foreign = own / f"a.1{ASIDE}", own / f"a.2{ASIDE}", own / "notes.txt"
    for path in (dead, alive, foreign):
        path.write_bytes(b"half")
    (own / f"folder{WHOLE}").mkdir()
    with open(alive, "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not list(folder.scan())
    assert names(tmp_path) == {alive.name, foreign.name, f"folder{WHOLE}"}


def test_a_scan_does_not_touch_what_is_being_written(
    tmp_path: Path, folder: EntryFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = os.fsync, []

    def fsync(handle: int) -> None:
        seen.append(list(EntryFolder(tmp_path / "tier", FINGERPRINT).scan()))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    folder.write(entry(1))
    assert [len(found) for found in seen] == [0, 1]  # of the file, then of the folder
    assert same(folder.read(entry(1).header.key), entry(1))


def test_another_entrys_file_is_not_taken(tmp_path: Path, folder: EntryFolder) -> None:
    own = tmp_path / "tier" / FINGERPRINT
    one, other = entry(1), entry(2)
    folder.write(one)
    (own / (one.header.key + WHOLE)).rename(own / (other.header.key + WHOLE))
    with pytest.raises(Damaged, match="another entry"):
        folder.read(other.header.key)
    (found,) = folder.scan()
    assert found.key == other.header.key and isinstance(found.header, Damaged)


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_full_disk_leaves_nothing(
    tmp_path: Path, folder: EntryFolder, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match="No space"):
        folder.write(entry(1))
    assert names(tmp_path) == set()


def test_a_removed_folder_is_made_again(tmp_path: Path, folder: EntryFolder) -> None:
    shutil.rmtree(tmp_path / "tier")
    folder.write(entry(1))
    assert same(folder.read(entry(1).header.key), entry(1))


@pytest.mark.parametrize("fingerprint", ["", "../x", "XY", "ab/cd", "ab\n"])
def test_a_fingerprint_is_hex(tmp_path: Path, fingerprint: str) -> None:
    with pytest.raises(ValueError, match=r"fingerprint: .* lower-case hex"):
        EntryFolder(tmp_path, fingerprint)
