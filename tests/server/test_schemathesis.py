"""Schemathesis over the OpenAPI document: whatever it makes of the schemas, right and wrong, is answered as
the document says, and never by a failure of the server."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as effort
from schemathesis import BaseSchema, Case, GenerationMode
from schemathesis.specs.openapi.checks import allow_header_conformance, positive_data_acceptance

from qnext.server.openapi.document import OPERATIONS
from qnext.server.openapi.operation import Operation
from qnext.server.service import Service
from qnext.server.settings import Settings

from .conftest import Live, serving
from .fake_engine import FakeEngine

MODES = [pytest.param(mode, id=mode.value) for mode in GenerationMode]
# What no schema tells is refused in words: a conversation without a user's turn, a choice among no tools.
# And GET /v1/responses/input_tokens is allowed, too: it asks for a response of that name.
LEFT_OUT = [positive_data_acceptance, allow_header_conformance]


@pytest.fixture(scope="module")
def wire(service: Service, engines: dict[str, FakeEngine], settings: Settings) -> Iterator[Live]:
    for engine in engines.values():
        engine.reset()
    with serving(service, engines, settings, "httptools") as live:
        yield live


@pytest.fixture(scope="module")
def session(wire: Live) -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.headers.update(wire.auth)
        yield session


@pytest.fixture(scope="module")
def schema(wire: Live) -> BaseSchema:
    """The document that describes streams event by event; another test says that it is else the same."""
    return schemathesis.openapi.from_url(wire.url + "/openapi-3.2.json")


def check(case: Case, wire: Live, session: requests.Session) -> None:
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body["model"] = "tiny-instruct"  # so that more is looked at than the name
    sent: dict[str, Any] = {"base_url": wire.url, "session": session}
    case.call_and_validate(**sent, excluded_checks=LEFT_OUT, timeout=20)


@pytest.mark.parametrize("most", [5, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.id)
def test_the_ends_of_every_schema(
    wire: Live,
    session: requests.Session,
    schema: BaseSchema,
    operation: Operation,
    mode: GenerationMode,
    most: int,
) -> None:
    """What lies just inside and just outside of each, in the order in which Schemathesis takes them."""
    known = schema[operation.path][operation.method]
    config = schema.config.generation_for(operation=known)
    cases = schema.iter_coverage_cases(known, generation_modes=[mode], generation_config=config)
    for case in islice(cases, most):
        check(case, wire, session)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.id)
def test_what_chance_makes_of_every_schema(
    wire: Live, session: requests.Session, schema: BaseSchema, operation: Operation, mode: GenerationMode
) -> None:
    if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query or operation.headers):
        pytest.skip("nothing about it can be wrong")
    known = schema[operation.path][operation.method]

    @effort(
        max_examples=100,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=known.as_strategy(generation_mode=mode))
    def ask(case: Case) -> None:
        check(case, wire, session)

    ask()
