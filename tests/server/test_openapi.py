"""The OpenAPI documents: valid by the standard, true to the routes and to the ranges that are checked; and
the page that shows them, which needs nothing from elsewhere."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import httpx
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator, OpenAPIV32SpecValidator
from starlette.routing import Route

from qnext.server.admission import Admission
from qnext.server.app import create_app
from qnext.server.keys import Keys
from qnext.server.openapi.document import OPERATIONS, document
from qnext.server.openapi.operation import EVENTS
from qnext.server.service import Service
from qnext.server.settings import Settings

from .conftest import Live
from .openapi_shapes import Shapes

VALIDATORS = {"3.1": OpenAPIV31SpecValidator, "3.2": OpenAPIV32SpecValidator}
DOCUMENTS: dict[str, Any] = {
    "3.1": document("3.1", Settings()),
    "3.2": document("3.2", Settings()),
}
PATHS = {"3.1": "/openapi.json", "3.2": "/openapi-3.2.json"}


@pytest.mark.parametrize("version", DOCUMENTS)
def test_it_is_valid(live: Live, version: str) -> None:
    told = httpx.get(live.url + PATHS[version]).json()
    assert told["openapi"].startswith(version)
    faults = [f"{list(e.path)}: {e.message}" for e in VALIDATORS[version](told).iter_errors()]
    assert faults == []


@pytest.mark.parametrize("version", DOCUMENTS)
def test_a_fault_is_noticed(version: str) -> None:
    told = json.loads(json.dumps(DOCUMENTS[version]))
    del told["info"]["title"]
    assert list(VALIDATORS[version](told).iter_errors())


def test_it_names_every_route(service: Service, keys: Keys, settings: Settings) -> None:
    admission = Admission(keys.store, settings)
    app = create_app(service, keys, admission, settings)
    routes = {
        (method, re.sub(r"\{(\w+):path\}", r"{\1}", route.path))
        for route in app.routes
        if isinstance(route, Route)
        for method in (route.methods or set()) - {"HEAD"}
    }
    told = [pair for operation in OPERATIONS for pair in operation.served()]
    assert set(told) == routes and len(told) == len(routes)
    admission.close()


def test_every_server_of_a_path_is_told() -> None:
    for operation in OPERATIONS:
        item = DOCUMENTS["3.1"]["paths"][operation.path]
        servers = [each["url"] for each in item.get("servers", [{"url": "/"}])]
        assert servers == [prefix or "/" for prefix in operation.prefixes], operation.id


def test_the_versions_say_the_same() -> None:
    old, new = (json.loads(json.dumps(DOCUMENTS[version])) for version in ("3.1", "3.2"))
    streams = 0
    for operation in OPERATIONS:
        for told in (old, new):
            responses = told["paths"][operation.path][operation.method]["responses"]
            content = responses.get("200", {}).get("content", {})
            if EVENTS in content:
                streams += 1
                schema = content[EVENTS].pop("itemSchema", None) or content[EVENTS].pop("schema")
                assert operation.events is not None and operation.events in json.dumps(schema)
                assert ("$ref" in schema) == (told is new)
    assert streams == 12
    text = re.sub(r'"(dataValue|serializedValue)": ', '"value": ', json.dumps(new))
    assert json.loads(text) == {**old, "openapi": new["openapi"]}


def test_the_lengths_are_the_settings() -> None:
    told = document("3.1", Settings(max_output_tokens=50, max_thinking_tokens=7))
    fields = told["components"]["schemas"]["ChatCompletionRequest"]["properties"]
    found = [fields[name]["maximum"] for name in ("max_tokens", "thinking_budget", "max_completion_tokens")]
    assert found == [50, 7, 57]


HI = [{"role": "user", "content": "Hi"}]
DIALECTS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ChatCompletionRequest": ("/v1/chat/completions", "", {"messages": HI}),
    "CompletionRequest": ("/v1/completions", "", {"prompt": "Hi", "echo": True}),
    "ResponseRequest": ("/v1/responses", "", {"input": "Hi", "store": False}),
    "MessageRequest": ("/v1/messages", "", {"messages": HI, "max_tokens": 5}),
    "GenerationRequest": (
        "/api/v1/services/aigc/text-generation/generation",
        "parameters",
        {"input": {"messages": HI}},
    ),
}
# Lengths that hold for reasoning and answer together.
THOUGHTFUL = {
    ("ChatCompletionRequest", "max_completion_tokens"),
    ("ResponseRequest", "max_output_tokens"),
    ("MessageRequest", "max_tokens"),
    ("GenerationRequest", "max_completion_tokens"),
}
# What a value needs beside it.
BESIDE = {
    "top_logprobs": {"logprobs": True, "include": ["message.output_text.logprobs"]},
    "best_of": {"n": None},
    "logprobs": {},
}


def _next(value: int, to: float) -> int:
    return value + (1 if to > value else -1)


def bounds() -> list[tuple[str, str, float | int, bool]]:
    """(schema, parameter, value, whether it is allowed) for both ends of every range, inside and outside."""
    found: list[tuple[str, str, float | int, bool]] = []
    for schema, (_, inner, _) in DIALECTS.items():
        fields = DOCUMENTS["3.1"]["components"]["schemas"][schema]["properties"]
        for name, field in (fields[inner]["properties"] if inner else fields).items():
            kind = field.get("type", [])
            if "integer" not in kind and "number" not in kind:
                continue
            step = _next if "integer" in kind else math.nextafter
            for word, out in (("minimum", -math.inf), ("maximum", math.inf)):
                if word in field:
                    found += [
                        (schema, name, field[word], True),
                        (schema, name, step(field[word], out), False),
                    ]
            for word, into in (("exclusiveMinimum", math.inf), ("exclusiveMaximum", -math.inf)):
                if word in field:
                    found += [(schema, name, field[word], False)]
                    found += [(schema, name, math.nextafter(field[word], into), True)]
    return [
        (schema, name, int(v) if float(v).is_integer() and abs(v) < 2**53 else v, ok)
        for schema, name, v, ok in found
    ]


def test_the_ranges_are_those_that_are_checked(http: httpx.Client) -> None:
    wrong = []
    for schema, name, value, allowed in bounds():
        path, inner, body = DIALECTS[schema]
        thoughtful = (schema, name) in THOUGHTFUL or name == "thinking_budget"
        model = "tiny-thinking" if thoughtful else "tiny-instruct"
        params = {**BESIDE.get(name, {}), name: value}
        if name == "best_of" and allowed:
            params["n"] = value
        sent = {"model": model, **body, **({inner: params} if inner else params)}
        answer = http.post(path, json=sent)
        in_range = answer.status_code == 200 or "Range of input length" in answer.text
        if in_range != allowed or answer.status_code not in (200, 400):
            wrong.append((schema, name, value, allowed, answer.text))
    assert not wrong, "\n".join(map(str, wrong))
    assert len(bounds()) > 100


@pytest.mark.parametrize("schema", DIALECTS)
def test_a_failure_in_a_stream_is_described(live: Live, http: httpx.Client, schema: str) -> None:
    live.instruct.fail("Hello there")
    path, inner, body = DIALECTS[schema]
    operation = next(each for each in OPERATIONS if each.path == path)
    stream = {} if inner else {"stream": True}
    answer = http.post(
        path, json={"model": "tiny-instruct", **body, **stream}, headers={"X-DashScope-SSE": "enable"}
    )
    assert "rror" in answer.text
    assert Shapes().answer_fault(operation, 200, EVENTS, answer.text) is None


def test_the_page_needs_nothing_from_elsewhere(live: Live) -> None:
    page = httpx.get(live.url + "/docs")
    named = re.findall(r'(?:src|href)="([^"]*)"', page.text)
    assert len(named) >= 3 and not re.search(r"https?:|//", page.text)
    texts = {}
    for name in named:
        if name.startswith("data:"):
            continue
        assert name.startswith("/docs/")
        found = httpx.get(live.url + name)
        assert found.status_code == 200 and found.text
        assert found.headers["content-type"].startswith(
            "text/css" if name.endswith(".css") else "text/javascript"
        )
        texts[name] = found.text
    assert "SwaggerUIBundle" in texts["/docs/swagger-ui-bundle.js"]
    assert set(re.findall(r"(?:url\(|@import)\s*[\"']?(\w+:?)", texts["/docs/swagger-ui.css"])) == {"data:"}
    start = texts["/docs/start.js"]
    assert "validatorUrl: null" in start and "//" not in start
    (address,) = re.findall(r'url: "([^"]*)"', start)
    assert httpx.get(live.url + address).json()["openapi"].startswith("3.1")
    policy = page.headers["content-security-policy"]
    allowed = set(re.findall(r"[^\s;]+", policy)) - {part.split()[0] for part in policy.split(";")}
    assert allowed == {"'none'", "'self'", "'unsafe-inline'", "data:"}


def test_a_file_that_the_page_does_not_have(live: Live) -> None:
    for name in ("none.js", "..%2Fapp.py", "%2e%2e"):
        answer = httpx.get(f"{live.url}/docs/{name}")
        assert answer.status_code == 404 and answer.json()["error"]["code"] == "not_found"
