from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from qnext.server.store import open_store
from qnext.server.stored_files import NoRoom, StoredFile, StoredFiles


@pytest.fixture
def store(tmp_path: Path) -> Engine:
    return open_store(tmp_path)


@pytest.fixture
def files(store: Engine, tmp_path: Path) -> StoredFiles:
    return StoredFiles(store, tmp_path / "files", 100)


def save(files: StoredFiles, text: bytes = b"one", key: int = 1, purpose: str = "batch") -> StoredFile:
    return files.save(key, [text[:1], text[1:]], filename="a.jsonl", purpose=purpose)


def test_a_file_is_what_was_saved(files: StoredFiles, tmp_path: Path) -> None:
    file = save(files)
    assert files.find(1, file.id) == file and file.id.startswith("file-batch-")
    assert files.path(file.id).read_bytes() == b"one" and file.size == 3
    assert file.md5 == hashlib.md5(b"one").hexdigest()
    assert files.path(file.id).stat().st_mode & 0o077 == 0
    assert (tmp_path / "files").stat().st_mode & 0o077 == 0


def test_each_key_has_its_own(files: StoredFiles) -> None:
    mine, other = save(files), save(files, key=2)
    assert files.find(2, mine.id) is None and files.listed(1, 10) == [mine]
    assert files.listed(2, 10) == [other] and files.count(1) == 1


def test_lists_begin_after_a_file_in_either_order(files: StoredFiles) -> None:
    a, b, c = (save(files, purpose=purpose) for purpose in ("batch", "fine-tune", "batch"))
    assert files.listed(1, 10) == [c, b, a] and files.listed(1, 1, after=c) == [b]
    assert files.listed(1, 10, oldest_first=True, after=a) == [b, c]
    assert files.listed(1, 10, purpose="batch") == [c, a] and files.listed(1, 1, skip=2) == [a]


def test_a_deleted_file_is_gone(files: StoredFiles) -> None:
    file = save(files)
    assert files.delete(file) and not files.delete(file)
    assert files.find(1, file.id) is None and not files.path(file.id).exists()


def test_a_key_has_so_much_room_and_no_more(files: StoredFiles, tmp_path: Path) -> None:
    first = save(files, b"x" * 60)
    with pytest.raises(NoRoom):
        save(files, b"x" * 41)
    assert files.listed(1, 10) == [first] and len(list((tmp_path / "files").iterdir())) == 1
    save(files, b"x" * 41, key=2)
    save(files, b"x" * 40)
    files.delete(first)
    save(files, b"x" * 60)


def test_what_breaks_off_leaves_nothing(files: StoredFiles, tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"some"
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        files.save(1, broken(), filename="a", purpose="batch")
    assert not list((tmp_path / "files").iterdir()) and files.count(1) == 0


def write_slowly(home: Path, begun: str) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"half"
        Path(begun).touch()
        time.sleep(60)

    StoredFiles(open_store(home), home / "files", 100).save(1, chunks(), filename="a", purpose="batch")


def test_a_sweep_takes_what_the_dead_left_and_not_what_the_living_write(
    files: StoredFiles, tmp_path: Path
) -> None:
    kept, begun = save(files), tmp_path / "begun"
    (tmp_path / "files" / "file-batch-lost").write_bytes(b"renamed, but its row was never made")
    writer = multiprocessing.get_context("spawn").Process(target=write_slowly, args=(tmp_path, str(begun)))
    writer.start()
    deadline = time.monotonic() + 60
    while not begun.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert files.sweep() == 1  # the lost one
    assert len(list((tmp_path / "files").iterdir())) == 2
    assert writer.pid is not None
    os.kill(writer.pid, signal.SIGKILL)
    writer.join()
    assert files.sweep() == 1 and files.sweep() == 0
    assert [path.name for path in (tmp_path / "files").iterdir()] == [kept.id]
