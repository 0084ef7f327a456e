"""A file as memory: the same bytes before, while and after its pages are exchanged."""

from __future__ import annotations

import gc
import logging
import threading
from pathlib import Path

import pytest
import torch

from qnext.kernels import mapped

pytestmark = pytest.mark.skipif(not mapped.supported(), reason="Linux only")


def written(path: Path, size: int) -> torch.Tensor:
    content = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))
    path.write_bytes(content.numpy().tobytes())
    return content


def settled() -> None:
    for thread in threading.enumerate():
        if thread.name == "weights":
            thread.join()


@pytest.mark.parametrize("size", [1, 4096, mapped.HUGE, 3 * mapped.HUGE + 77])
def test_bytes_of_the_file(tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "PIECE", mapped.HUGE)
    wanted = written(tmp_path / "file", size)
    found = mapped.map_file(tmp_path / "file")
    assert torch.equal(found, wanted)
    settled()
    assert torch.equal(found, wanted) and found.data_ptr() % mapped.HUGE == 0


def test_every_reader_sees_the_same_all_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "PIECE", mapped.HUGE)
    wanted = written(tmp_path / "file", 24 * mapped.HUGE)
    found, looks = mapped.map_file(tmp_path / "file"), 0
    while any(thread.name == "weights" for thread in threading.enumerate()) or not looks:
        assert torch.equal(found, wanted)
        looks += 1


def test_pages_become_the_process_own(tmp_path: Path) -> None:
    written(tmp_path / "file", 8 * mapped.HUGE)
    found = mapped.map_file(tmp_path / "file")
    settled()
    own, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, _, rest = line.partition(" ")
        if "-" in name and not name.endswith(":"):
            low, high = (int(part, 16) for part in name.split("-"))
            inside = found.data_ptr() <= low < high <= found.data_ptr() + len(found)
        elif inside and name == "Anonymous:":
            own += int(rest.split()[0]) * 1024
    assert own == len(found)


def test_writing_does_not_reach_the_file(tmp_path: Path) -> None:
    wanted = written(tmp_path / "file", 5000)
    found = mapped.map_file(tmp_path / "file")
    settled()
    found.zero_()
    assert (tmp_path / "file").read_bytes() == wanted.numpy().tobytes()


def test_a_view_keeps_it_and_the_last_one_frees_it(tmp_path: Path) -> None:
    wanted = written(tmp_path / "file", 3 * mapped.HUGE)
    view = mapped.map_file(tmp_path / "file")[100:200].view(10, 10)
    gc.collect()
    assert torch.equal(view.flatten(), wanted[100:200])
    settled()
    address = f"{view.data_ptr() // mapped.HUGE * mapped.HUGE:x}-"
    assert address in Path("/proc/self/maps").read_text()
    del view
    gc.collect()
    assert address not in Path("/proc/self/maps").read_text()


def test_a_file_that_shrinks_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    written(tmp_path / "file", 3 * mapped.HUGE)
    monkeypatch.setattr(threading.Thread, "start", lambda self: None)
    kept = mapped.map_file(tmp_path / "file")
    mapping = mapped.Mapping(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"short")
    with pytest.raises(ValueError, match="became shorter"):
        mapping.settle(0)
    assert len(kept) == 3 * mapped.HUGE


def test_without_memory_the_mapping_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: mapped.Mapping, at: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mapped.Mapping, "settle", refuse)
    wanted = written(tmp_path / "file", 3 * mapped.HUGE)
    with caplog.at_level(logging.WARNING):
        found = mapped.map_file(tmp_path / "file")
        settled()
    assert torch.equal(found, wanted) and "small pages" in caplog.text


def test_what_others_map_where_a_piece_was_stays(tmp_path: Path) -> None:
    """A piece that was moved leaves a hole, which belongs to whoever asks for memory next."""
    written(tmp_path / "file", mapped.HUGE)
    mapping = mapped.Mapping(tmp_path / "file")
    move, taken = mapping._libc.mremap, list[int]()

    def move_and_take(old: int, size: int, *more: int) -> int:
        found: int = move(old, size, *more)
        anonymous = mapped.PRIVATE | mapped.ANONYMOUS | mapped.FIXED
        taken.append(mapping._map(old, size, mapped.READ_WRITE, anonymous, -1))
        return found

    mapping._libc.mremap = move_and_take  # type: ignore[method-assign]
    mapping.settle(0)
    (place,) = taken
    lines = Path("/proc/self/maps").read_text().splitlines()
    spans = [[int(part, 16) for part in line.split()[0].split("-")] for line in lines]
    assert any(low <= place and place + mapped.HUGE <= high for low, high in spans)
    mapping._libc.munmap(place, mapped.HUGE)


def test_several_files_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mapped, "PIECE", mapped.HUGE)
    wanted = [written(tmp_path / f"file {n}", 16 * mapped.HUGE + n) for n in range(5)]
    found = [mapped.map_file(tmp_path / f"file {n}") for n in range(5)]
    settled()
    assert all(torch.equal(*pair) for pair in zip(wanted, found, strict=True))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
