"""The examples of the OpenAPI document, run: `python -m tests.server.openapi_examples` asks a server with the
embedded models and writes what it answers into the document's source."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import httpx

from qnext.server.openapi import examples
from qnext.server.openapi.document import OPERATIONS
from qnext.server.openapi.operation import EVENTS, JSON, Operation

from ..process import start, stop

BY_ID = {operation.id: operation for operation in OPERATIONS}
_ORIGIN = "http://127.0.0.1:8000"


@dataclass(frozen=True)
class Told:
    """What came of one example. `sent` is its request with the answers of earlier ones in it."""

    operation: Operation
    name: str
    sent: dict[str, Any]
    response: httpx.Response
    media: str
    answer: Any


def run(url: str, key: str) -> Iterator[Told]:
    """Every example in the order of the file."""
    answers: dict[tuple[str, str], Any] = {}
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=300) as client:
        for operation_id, every in examples.raw().items():
            for each in every:
                operation = BY_ID[operation_id]
                sent = examples.resolved(each["request"], answers)
                response = ask(client, operation, sent)
                media = response.headers["content-type"].partition(";")[0]
                answer = response.json() if media == JSON else response.text
                answers[operation_id, each["name"]] = answer
                yield Told(operation, each["name"], sent, response, media, answer)


def ask(client: httpx.Client, operation: Operation, sent: dict[str, Any]) -> httpx.Response:
    path, body = operation.path, sent.get("body")
    for name in operation.names:
        path = path.replace(f"{{{name}}}", sent["path"][name])
    more: dict[str, Any] = {}
    if operation.form:
        parts = {name: value for name, value in body.items() if is_file(operation, name)}
        more["files"] = [(name, (f"{name}.jsonl", value.encode())) for name, value in parts.items()]
        more["data"] = {name: value for name, value in body.items() if name not in parts}
    elif body is not None:
        more["json"] = body
    return client.request(
        operation.method, path, params=sent.get("query"), headers=sent.get("header"), **more
    )


def is_file(operation: Operation, name: str) -> bool:
    """Whether a part of a form is a file, or one of several."""
    assert operation.body is not None
    schema = operation.body["properties"][name]
    return "binary" in (schema.get("format"), schema.get("items", {}).get("format"))


def record(url: str, key: str) -> None:
    found = examples.raw()
    for told in run(url, key):
        each = next(each for each in found[told.operation.id] if each["name"] == told.name)
        each |= {"status": told.response.status_code, "media": told.media}
        if not each.get("unshown"):
            text = json.dumps(told.answer).replace(url, _ORIGIN)
            each["answer"] = json.loads(text)
        print(told.response.status_code, told.media == EVENTS, told.operation.id, told.name)
    written = json.dumps(found, ensure_ascii=False, indent=1) + "\n"
    Path(str(files("qnext.server.openapi") / examples.FILE)).write_text(written, "utf-8")


def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        process, server = start([], Path(home))
        try:
            record(server.base, server.key)
        finally:
            stop(process)


if __name__ == "__main__":
    main()
