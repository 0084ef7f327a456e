"""The lines of a batch's input file: read a few at a time, and checked before the first one is answered.

Called by the batch runner, in threads. Invariants: lines are numbered as an editor numbers them, from 1; no
line longer than the limit is ever in memory; what `check` has passed, `take` reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from .errors import ApiError
from .gate import json_object

ENDPOINTS = ("/v1/chat/completions", "/v1/completions")
TEST_ENDPOINT, TEST_MODEL = "/v1/chat/ds-test", "batch-test-model"
TEST_LINES, TEST_BYTES, TEST_BATCHES = 100, 2**20, 2
MAX_FAULTS = 100
MAX_CUSTOM_ID = 256


@dataclass(frozen=True)
class Line:
    number: int
    custom_id: str
    body: dict[str, Any]


class Fault(Exception):
    """What is wrong with the input, as `errors.data` tells it. `line` is None for the file itself."""

    def __init__(self, code: str, message: str, line: int | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.line, self.param = code, line, param

    def told(self) -> dict[str, Any]:
        return {"code": self.code, "message": str(self), "line": self.line, "param": self.param}


class Place(NamedTuple):
    """Where a line begins: the byte, and how many lines lie before it."""

    offset: int = 0
    lines: int = 0


@dataclass(frozen=True)
class Checked:
    """What the check found; without faults, `total` lines for `model`."""

    model: str
    total: int
    faults: list[Fault]


@dataclass(frozen=True)
class Bounds:
    """How many lines, of how many bytes each."""

    lines: int
    line_bytes: int


def endpoint_of(url: Any) -> str | None:
    """The endpoint that a URL's path means, with the compatible base or without; None when there is none."""
    path = url.removeprefix("/compatible-mode") if isinstance(url, str) else ""
    return path if path in (*ENDPOINTS, TEST_ENDPOINT) else None


def check(path: Path, endpoint: str, bounds: Bounds, serves: Callable[[str], bool]) -> Checked:
    """All of the input; `serves` says whether a model is there. Raises OSError."""
    faults: list[Fault] = []
    model, total, seen = "", 0, dict[str, int]()
    if endpoint == TEST_ENDPOINT:
        bounds = Bounds(TEST_LINES, bounds.line_bytes)
        if path.stat().st_size > TEST_BYTES:
            return Checked("", 0, [Fault("file_too_large", f"test files have at most {TEST_BYTES} bytes")])
    for number, raw in _numbered(path, bounds.line_bytes):
        total += 1
        if total > bounds.lines:
            faults.append(Fault("too_many_lines", f"a file has at most {bounds.lines} lines", number))
        if len(faults) >= MAX_FAULTS or total > bounds.lines:
            break
        try:
            line = _line(number, raw, endpoint, bounds)
            first = seen.setdefault(line.custom_id, number)
            if first != number:
                words = f"custom_id {line.custom_id!r} is that of line {first} already: each is to be unique"
                raise Fault("duplicate_custom_id", words, number, "custom_id")
            model = model or _model(line, endpoint, serves)
            if line.body["model"] != model:
                words = f"the model is {line.body['model']!r}, that of the lines before {model!r}: one a file"
                raise Fault("mismatched_model", words, number, "body.model")
        except Fault as fault:
            faults.append(fault)
    if not total:
        faults.append(Fault("empty_file", "the file has no lines"))
    return Checked(model, total, faults)


def take(path: Path, place: Place, count: int, line_bytes: int) -> tuple[list[Line], Place | None]:
    """Up to `count` lines from `place` on, and where the next ones begin, None at the end. The lines have
    been checked. Raises OSError."""
    lines: list[Line] = []
    with open(path, "rb") as file:
        file.seek(place.offset)
        for number, raw in _raw(file, line_bytes, place.lines):
            held = json_object(raw)
            lines.append(Line(number, held["custom_id"], held["body"]))
            if len(lines) == count:
                return lines, Place(file.tell(), number)
    return lines, None


def _numbered(path: Path, line_bytes: int) -> Iterator[tuple[int, bytes]]:
    with open(path, "rb") as file:
        yield from _raw(file, line_bytes, 0)


def _raw(file: BinaryIO, line_bytes: int, number: int) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank; of one that is too long, just enough to see that."""
    while raw := file.readline(line_bytes + 2):
        number += 1
        rest = raw
        while len(rest) > line_bytes and not rest.endswith(b"\n"):
            rest = file.readline(line_bytes + 2)
        if raw.strip():
            yield number, raw


def _line(number: int, raw: bytes, endpoint: str, bounds: Bounds) -> Line:
    """Raises Fault."""
    if len(raw.rstrip(b"\r\n")) > bounds.line_bytes:
        raise Fault("line_too_long", f"a line has at most {bounds.line_bytes} bytes", number)
    try:
        held = json_object(raw)
    except ApiError:
        raise Fault("invalid_json_line", f"line {number} is not a JSON object in UTF-8", number) from None
    custom_id, body = held.get("custom_id"), held.get("body")
    if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= MAX_CUSTOM_ID:
        words = f"custom_id must be a text of 1 to {MAX_CUSTOM_ID} characters"
        raise Fault("invalid_custom_id", words, number, "custom_id")
    if held.get("method") != "POST":
        raise Fault("invalid_method", 'method must be "POST"', number, "method")
    if endpoint_of(held.get("url")) != endpoint:
        raise Fault("url_not_found", f"url must be the batch's endpoint, {endpoint}", number, "url")
    if not isinstance(body, dict):
        raise Fault("invalid_body", "body must be an object", number, "body")
    if not isinstance(body.get("model"), str) or not body["model"]:
        raise Fault("missing_required_parameter", "body.model must name a model", number, "body.model")
    return Line(number, custom_id, body)


def _model(line: Line, endpoint: str, serves: Callable[[str], bool]) -> str:
    model = str(line.body["model"])
    test = endpoint == TEST_ENDPOINT
    if test != (model == TEST_MODEL) or not (test or serves(model)):
        words = f"The model `{model}` does not exist at {endpoint} or you do not have access to it."
        raise Fault("model_not_found", words, line.number, "body.model")
    return model
