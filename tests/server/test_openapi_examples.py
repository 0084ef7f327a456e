"""The examples of the OpenAPI document are true: a server with the embedded models answers each of them as
the document says, and what was written into the document has the shape it describes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qnext.server.openapi import examples
from qnext.server.openapi.operation import EVENTS

from ..process import Server, start, stop
from .openapi_examples import BY_ID, Told, run
from .openapi_shapes import Shapes, events_of

RECORDED = {(name, each["name"]): each for name, every in examples.raw().items() for each in every}
SHAPES = Shapes()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    process, running = start([], tmp_path_factory.mktemp("home"))
    yield running
    stop(process)


@pytest.fixture(scope="module")
def told(server: Server) -> dict[tuple[str, str], Told]:
    return {(each.operation.id, each.name): each for each in run(server.base, server.key)}


def test_every_operation_has_an_example() -> None:
    assert set(examples.raw()) == set(BY_ID)
    assert all(examples.raw().values())
    assert len(RECORDED) == sum(len(every) for every in examples.raw().values())
    streamed = {name for (name, _), each in RECORDED.items() if each["media"] == EVENTS}
    assert streamed == {name for name, each in BY_ID.items() if each.events is not None}


@pytest.mark.parametrize("which", RECORDED, ids="-".join)
def test_what_was_recorded_has_the_shape(which: tuple[str, str]) -> None:
    each, operation = RECORDED[which], BY_ID[which[0]]
    if "answer" in each:
        assert SHAPES.answer_fault(operation, each["status"], each["media"], each["answer"]) is None
    body = next((e["request"].get("body") for e in examples.load()[which[0]] if e["name"] == which[1]), None)
    if body is not None and not operation.form:
        refused = each["status"] in (400, 413)
        assert SHAPES.body_fault(operation, body) is None or refused


@pytest.mark.parametrize("which", RECORDED, ids="-".join)
def test_the_example_is_answered_so_again(told: dict[tuple[str, str], Told], which: tuple[str, str]) -> None:
    now, then = told[which], RECORDED[which]
    assert (now.response.status_code, now.media) == (then["status"], then["media"]), now.response.text
    assert SHAPES.answer_fault(now.operation, now.response.status_code, now.media, now.answer) is None
    assert now.response.headers["x-request-id"]
    if now.media == EVENTS:
        assert len(events_of(now.answer)) == len(events_of(then["answer"]))


@pytest.mark.parametrize("broken", [{"id": 7}, {"surplus": 1}])
def test_a_wrong_shape_is_noticed(broken: dict[str, Any]) -> None:
    good = RECORDED["createChatCompletion", "plain"]["answer"]
    assert SHAPES.answer_fault(BY_ID["createChatCompletion"], 200, "application/json", good) is None
    assert SHAPES.answer_fault(BY_ID["createChatCompletion"], 200, "application/json", good | broken)


def test_a_wrong_event_is_noticed() -> None:
    good = RECORDED["generate", "stream"]["answer"]
    operation = BY_ID["generate"]
    assert SHAPES.answer_fault(operation, 200, EVENTS, good) is None
    for old, new in (("event:result", "event:news"), ('"output"', '"outputs"'), ("data:{", "data:")):
        assert SHAPES.answer_fault(operation, 200, EVENTS, good.replace(old, new, 1)), old
