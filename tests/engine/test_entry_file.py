"""A file gives the entry that was written, or says that it is damaged: nothing third."""

from __future__ import annotations

import json
import struct
import zlib
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from qnext.engine.entry_file import MAGIC, VERSION, Damaged, file_bytes, read_entry, read_header, write_entry
from qnext.engine.tier import Entry, Header, entry_key

from .entries import FINGERPRINT, entry, same

HEAD = struct.calcsize("<8sIIQQII")
ROOT = entry(1, 2)
WHOLE = entry(3, 151_935, 4, parent=ROOT, salt="tenant ä")


def written(what: Entry, fingerprint: str = FINGERPRINT) -> bytes:
    buffer = BytesIO()
    write_entry(buffer, what, fingerprint)
    return buffer.getvalue()


BYTES = written(WHOLE)
HEADER_END = len(BYTES) - WHOLE.bytes
REGIONS = {
    "nothing": 0,
    "magic": 3,
    "version": 9,
    "lengths": 20,
    "checksums": HEAD - 2,
    "before the header": HEAD,
    "header": HEAD + 10,
    "before kv": HEADER_END,
    "kv": HEADER_END + 100,
    "before state": HEADER_END + WHOLE.kv.numel(),
    "state": len(BYTES) - 100,
    "the last byte": len(BYTES) - 1,
}


def read(path: Path, content: bytes, fingerprint: str = FINGERPRINT) -> Entry:
    path.write_bytes(content)
    with open(path, "rb") as file:
        return read_entry(file, fingerprint)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


@pytest.mark.parametrize(
    "what",
    [WHOLE, ROOT, entry(1, kv=0), entry(1, state=0), entry(1, salt="\ud800\n\0"), entry(*range(5000))],
)
def test_gives_what_was_written(path: Path, what: Entry) -> None:
    content = written(what)
    assert same(read(path, content), what)
    assert len(content) == file_bytes(what, FINGERPRINT)
    with open(path, "rb") as file:
        assert read_header(file, FINGERPRINT) == what.header


@pytest.mark.parametrize("region", REGIONS)
def test_a_file_that_ends_early(path: Path, region: str) -> None:
    with pytest.raises(Damaged):
        read(path, BYTES[: REGIONS[region]])
    with open(path, "rb") as file, pytest.raises(Damaged):  # already at the start: the lengths tell
        read_header(file, FINGERPRINT)


@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(0, len(BYTES) * 8 - 1), st.sampled_from(["flip", "hole", "cut", "extra"]))
@example(0, "flip")
def test_any_damage_is_noticed(path: Path, bit: int, kind: str) -> None:
    at, altered = bit // 8, bytearray(BYTES)
    if kind == "flip":
        altered[at] ^= 1 << bit % 8
    elif kind == "hole":  # what a crash leaves where the disk had not caught up
        altered[at : at + 64] = bytes(len(altered[at : at + 64]))
    elif kind == "cut":
        del altered[at]
    else:
        altered.insert(at, 0)
    if altered != BYTES:
        with pytest.raises(Damaged):
            read(path, bytes(altered))


def test_every_bit_of_the_start_counts(path: Path) -> None:
    for bit in range(HEADER_END * 8):
        altered = bytearray(BYTES)
        altered[bit // 8] ^= 1 << bit % 8
        path.write_bytes(altered)
        with open(path, "rb") as file, pytest.raises(Damaged):
            read_header(file, FINGERPRINT)


def forged(content: object, version: int = VERSION) -> bytes:
    """With checksums that hold."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    head = struct.pack("<8sIIQQI", MAGIC, version, len(text), 0, 0, 0)
    return head + struct.pack("<I", zlib.crc32(text, zlib.crc32(head))) + text


GOOD = {"fingerprint": FINGERPRINT, "parent": None, "salt": "s", "tokens": [1, 2]}
STRANGE = {
    "another version": forged(GOOD, VERSION + 1),
    "another model": forged({**GOOD, "fingerprint": "cd34"}),
    "no tokens": forged({**GOOD, "tokens": []}),
    "tokens that are none": forged({**GOOD, "tokens": ["a"]}),
    "negative tokens": forged({**GOOD, "tokens": [-1]}),
    "a number for a parent": forged({**GOOD, "parent": 7}),
    "no salt": forged({key: value for key, value in GOOD.items() if key != "salt"}),
    "a list": forged([1]),
    "no JSON": forged(b"{"),
    "no text": forged(b"\xff"),
    "another program's": b"PNG" * 1000,
    "empty": b"",
}


@pytest.mark.parametrize("case", STRANGE)
def test_strange_files(path: Path, case: str) -> None:
    with pytest.raises(Damaged):
        read(path, STRANGE[case])


def test_the_forgery_would_pass(path: Path) -> None:
    """So what is refused above is refused for what it is."""
    assert read(path, forged(GOOD)).header == Header(entry_key(None, "s", [1, 2]), None, "s", (1, 2))
