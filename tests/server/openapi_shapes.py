"""Answers held against the OpenAPI document: whole ones and streams, every field of them described."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import unquote

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from qnext.server.openapi.document import document
from qnext.server.openapi.operation import EVENTS, Operation
from qnext.server.settings import Settings

_HOME = "urn:document"


def events_of(text: str) -> list[dict[str, str]]:
    """The server-sent events of a stream, comments aside."""
    told = []
    for block in text.split("\n\n"):
        fields = [line.partition(":") for line in block.split("\n") if line and not line.startswith(":")]
        if fields:
            told.append({name: value.removeprefix(" ") for name, _, value in fields})
    return told


class Shapes:
    """The document, and faults of what does not fit it."""

    def __init__(self) -> None:
        self.document = document("3.2", Settings())
        _close(self.document)
        self._registry: Registry[Any] = Registry().with_resource(
            _HOME, DRAFT202012.create_resource(self.document)
        )

    def answer_fault(self, operation: Operation, status: int, media: str, answer: Any) -> str | None:
        """What is wrong with an answer, if something is. `answer` is JSON, or text."""
        place = f"/paths/{_escaped(operation.path)}/{operation.method}/responses/{status}"
        response = self._at(place)
        if response is None:
            return f"status {status} is not described"
        if "$ref" in response:
            place = response["$ref"].removeprefix("#")
            response = self._at(place)
        content = response["content"]
        if media not in content and "*/*" not in content:
            return f"{media} is not described"
        if media == EVENTS:
            events = content[media]["itemSchema"]["$ref"].removeprefix("#")
            faults = (self._event_fault(events, each) for each in events_of(answer))
            return next((fault for fault in faults if fault), None)
        kind = media if media in content else "*/*"
        return self._fault(f"{place}/content/{_escaped(kind)}/schema", answer)

    def body_fault(self, operation: Operation, body: Any) -> str | None:
        """What is wrong with a request's body, if something is."""
        kind = _escaped("multipart/form-data" if operation.form else "application/json")
        place = f"/paths/{_escaped(operation.path)}/{operation.method}/requestBody/content/{kind}/schema"
        return self._fault(place, body)

    def _event_fault(self, place: str, event: dict[str, str]) -> str | None:
        faults = []
        for i, branch in enumerate(self._at(place)["anyOf"]):
            here = f"{place}/anyOf/{i}"
            fault = self._fault(here, event)
            if fault is None and "contentSchema" in branch["properties"]["data"]:
                try:
                    data = json.loads(event["data"])
                except ValueError as error:
                    fault = str(error)
                else:
                    fault = self._fault(f"{here}/properties/data/contentSchema", data)
            if fault is None:
                return None
            faults.append(fault)
        return f"{event}: " + "; ".join(faults)

    def _fault(self, place: str, value: Any) -> str | None:
        check = Draft202012Validator({"$ref": f"{_HOME}#{place}"}, registry=self._registry)
        error = best_match(check.iter_errors(value))
        return None if error is None else f"{error.json_path}: {error.message}"

    def _at(self, place: str) -> Any:
        found: Any = self.document
        for step in place.strip("/").split("/"):
            step = unquote(step).replace("~1", "/").replace("~0", "~")
            found = found[int(step)] if isinstance(found, list) else found.get(step)
            if found is None:
                return None
        return found


def _escaped(step: str) -> str:
    """A step of a JSON pointer within a URI."""
    return step.replace("~", "~0").replace("/", "~1").replace("{", "%7B").replace("}", "%7D")


def _close(value: Any) -> None:
    """Lets objects have the fields that are described and no other, unless they are told to be open."""
    if isinstance(value, dict):
        if isinstance(value.get("properties"), dict):
            value.setdefault("additionalProperties", False)
        for each in value.values():
            _close(each)
    elif isinstance(value, list):
        for each in value:
            _close(each)
