"""Examples of requests with the answers that a server gave: `examples.json`, by operation.

Read by `document`; a script of the tests runs the requests and writes the answers. Invariant: a text such as
`@uploadFile.lines.id` in a request stands for what that example's answer said, so that the requests can be
run again, in the order of the file.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

Example = dict[str, Any]
Examples = Mapping[str, Sequence[Example]]
FILE = "examples.json"


def raw() -> dict[str, list[Example]]:
    """As they stand in the file. An example has `name`, `summary` and `request` (`path`, `query`, `header`,
    `body`), and what came of it: `status`, `media` and, unless it is `unshown`, `answer` (JSON, or the text
    of a stream)."""
    found: dict[str, list[Example]] = json.loads(files(__package__).joinpath(FILE).read_text("utf-8"))
    return found


def load() -> Examples:
    """Those that were run and are to be shown, each request as it was sent."""
    found = raw()
    answers = {
        (name, each["name"]): each["answer"]
        for name, every in found.items()
        for each in every
        if "answer" in each
    }
    return {
        name: [each | {"request": resolved(each["request"], answers)} for each in every if "answer" in each]
        for name, every in found.items()
    }


def resolved(value: Any, answers: Mapping[tuple[str, str], Any]) -> Any:
    """A request with what earlier answers said. Raises KeyError where there is no such answer."""
    if isinstance(value, dict):
        return {key: resolved(each, answers) for key, each in value.items()}
    if isinstance(value, list):
        return [resolved(each, answers) for each in value]
    if not isinstance(value, str) or not value.startswith("@"):
        return value
    operation, example, *way = value[1:].split(".")
    found = answers[operation, example]
    for step in way:
        found = found[int(step) if step.isdigit() else step]
    return found
