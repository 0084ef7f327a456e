from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qnext.server.batch_lines import (
    MAX_FAULTS,
    TEST_ENDPOINT,
    Bounds,
    Checked,
    Line,
    Place,
    check,
    endpoint_of,
    take,
)

CHAT = "/v1/chat/completions"
BOUNDS = Bounds(6, 500)


def line(custom_id: Any = "a", body: Any = None, **changes: Any) -> dict[str, Any]:
    body = {"model": "m"} if body is None else body
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body} | changes


def checked(path: Path, *lines: Any, endpoint: str = CHAT, raw: bytes | None = None) -> Checked:
    text = raw if raw is not None else "\n".join(json.dumps(each) for each in lines).encode()
    path.write_bytes(text)
    return check(path, endpoint, BOUNDS, lambda model: model in ("m", "n"))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "input"


def test_a_sound_file(path: Path) -> None:
    other = line("b", url="/compatible-mode" + CHAT)
    assert checked(path, line(), other) == Checked("m", 2, [])


FAULTS = {
    "custom_id is absent": (line(None), "invalid_custom_id", "custom_id"),
    "custom_id is empty": (line(""), "invalid_custom_id", "custom_id"),
    "custom_id is a number": (line(7), "invalid_custom_id", "custom_id"),
    "custom_id is long": (line("x" * 257), "invalid_custom_id", "custom_id"),
    "custom_id comes again": (line("first"), "duplicate_custom_id", "custom_id"),
    "method": (line(method="GET"), "invalid_method", "method"),
    "url is unknown": (line(url="/v1/embeddings"), "url_not_found", "url"),
    "url is another endpoint": (line(url="/v1/completions"), "url_not_found", "url"),
    "url is no text": (line(url=[CHAT]), "url_not_found", "url"),
    "body is a list": (line(body=[]), "invalid_body", "body"),
    "no model": (line(body={"messages": []}), "missing_required_parameter", "body.model"),
    "model is a number": (line(body={"model": 4}), "missing_required_parameter", "body.model"),
    "another model": (line(body={"model": "n"}), "mismatched_model", "body.model"),
    "a list": ([line()], "invalid_json_line", None),
    "a text": ("line", "invalid_json_line", None),
    "too long": (line(body={"model": "m", "prompt": "x" * 500}), "line_too_long", None),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_line_with_a_fault(path: Path, name: str) -> None:
    wrong, code, param = FAULTS[name]
    found = checked(path, line("first"), wrong, line("third"))
    (fault,) = found.faults
    assert fault.told() == {"code": code, "message": str(fault), "line": 2, "param": param}
    assert str(fault) and found.total == 3


@pytest.mark.parametrize(
    "raw", [b"{", b'{"a": NaN}', b"\xff{}", b"[" * 200, b'{"a": 1} {"b": 2}', b"null", b"\x00"]
)
def test_what_is_no_json(path: Path, raw: bytes) -> None:
    sound = json.dumps(line()).encode()
    (fault,) = checked(path, raw=sound + b"\r\n\r\n" + raw).faults
    assert (fault.code, fault.line) == ("invalid_json_line", 3)


def test_a_model_that_is_not_served(path: Path) -> None:
    (fault,) = checked(path, line(body={"model": "gpt"})).faults
    assert fault.code == "model_not_found" and "`gpt`" in str(fault) and fault.line == 1


def test_files_without_lines(path: Path) -> None:
    for raw in (b"\n \r\n\t\n", b""):
        assert [fault.code for fault in checked(path, raw=raw).faults] == ["empty_file"]


def test_too_many_lines_and_too_many_faults(path: Path) -> None:
    found = checked(path, *(line(str(i)) for i in range(7)))
    assert [(fault.code, fault.line) for fault in found.faults] == [("too_many_lines", 7)]
    path.write_bytes(b"{\n" * 1000)
    assert len(check(path, CHAT, Bounds(5000, 300), lambda _: True).faults) == MAX_FAULTS


def test_the_test_model_has_its_own_endpoint_and_bounds(path: Path) -> None:
    body = {"model": "batch-test-model"}
    assert checked(path, line(url=TEST_ENDPOINT, body=body), endpoint=TEST_ENDPOINT).faults == []
    for wrong in (line(body=body), line(url=TEST_ENDPOINT)):
        endpoint = endpoint_of(wrong["url"])
        assert endpoint is not None
        assert [fault.code for fault in checked(path, wrong, endpoint=endpoint).faults] == ["model_not_found"]
    many = [line(str(i), url=TEST_ENDPOINT, body=body) for i in range(101)]
    assert [fault.code for fault in checked(path, *many, endpoint=TEST_ENDPOINT).faults] == ["too_many_lines"]
    large = checked(path, raw=b" " * 2**20 + b"\n", endpoint=TEST_ENDPOINT)
    assert [fault.code for fault in large.faults] == ["file_too_large"]


@pytest.mark.parametrize("count", [1, 2, 3, 100])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_lines_are_taken_a_few_at_a_time(path: Path, count: int, end: bytes) -> None:
    lines = [json.dumps(line(f"é{i}", {"model": "m", "i": i})).encode() for i in range(5)]
    bounds = BOUNDS
    path.write_bytes(b"\xef\xbb\xbf" + lines[0] + end + end + end.join(lines[1:]))
    assert check(path, CHAT, bounds, lambda _: True) == Checked("m", 5, [])
    taken: list[Line] = []
    place: Place | None = Place()
    while place is not None:
        some, place = take(path, place, count, bounds.line_bytes)
        assert len(some) <= count
        taken += some
    assert [each.number for each in taken] == [1, 3, 4, 5, 6]
    assert [each.body["i"] for each in taken] == [*range(5)] and taken[4].custom_id == "é4"


def test_half_a_surrogate_is_no_letter(path: Path) -> None:
    path.write_bytes(json.dumps(line("\ud800")).encode())
    assert check(path, CHAT, BOUNDS, lambda _: True).faults == []
    ((only,), _) = take(path, Place(), 2, 300)
    assert only.custom_id == "?"
