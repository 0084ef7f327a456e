"""The contract's table of errors: the status and code of each situation, and the class each SDK raises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest

from qnext.engine.request import Output

from .conftest import Live
from .ways import COMPAT, HI, NATIVE, WAYS, Told, ask

pytestmark = pytest.mark.parametrize("running", ["httptools"], indirect=True)
INSTRUCT = "qwen3-next-80b-a3b-instruct"


def wrong_key(way: str, live: Live) -> Told:
    return ask(way, replace(live, key="sk-bad"), INSTRUCT)


def unknown_model(way: str, live: Live) -> Told:
    return ask(way, live, "qwen-max")


def bad_parameter(way: str, live: Live) -> Told:
    return ask(way, live, INSTRUCT, top_p=7)


def body_too_large(way: str, live: Live) -> Told:
    return ask(way, live, INSTRUCT, [{"role": "user", "content": "x" * 2**21}])


def full(way: str, live: Live) -> Told:
    live.instruct.refusal = RuntimeError("full")
    return ask(way, live, INSTRUCT)


def engine_fails(way: str, live: Live) -> Told:
    live.instruct.fail("")
    return ask(way, live, INSTRUCT)


def too_slow(way: str, live: Live) -> Told:
    live.instruct.script = lambda request: [Output(finish_reason="error", error="late", timed_out=True)]
    return ask(way, live, INSTRUCT)


@dataclass(frozen=True)
class Row:
    """`raised` are the classes of `openai` and of `dashscope.Client`."""

    happens: Callable[[str, Live], Told]
    status: int
    native: str
    compat: str
    raised: tuple[str, str]
    words: str


TABLE = [
    Row(
        wrong_key,
        401,
        "InvalidApiKey",
        "invalid_api_key",
        ("AuthenticationError", "AuthenticationError"),
        "provided. This server is http://127.0.0.1:",
    ),
    Row(
        unknown_model,
        404,
        "ModelNotFound",
        "model_not_found",
        ("NotFoundError", "NotFoundError"),
        "The model `qwen-max` does not exist or you do not have access to it.",
    ),
    Row(
        bad_parameter,
        400,
        "InvalidParameter",
        "invalid_parameter_error",
        ("BadRequestError", "BadRequestError"),
        "Range of top_p should be (0.0, 1.0]",
    ),
    Row(
        body_too_large,
        413,
        "BadRequest.TooLarge",
        "request_too_large",
        ("APIStatusError", "RequestTooLargeError"),
        "The request body is larger than 1048576 bytes",
    ),
    Row(
        full,
        503,
        "ModelServingError",
        "model_serving_error",
        ("InternalServerError", "ServiceUnavailableError"),
        "The model takes no more requests for now",
    ),
    Row(
        engine_fails,
        500,
        "InternalError",
        "internal_error",
        ("InternalServerError", "InternalServerError"),
        "An internal error has occurred, please try again later.",
    ),
    Row(
        too_slow,
        408,
        "RequestTimeOut",
        "RequestTimeOut",
        ("APIStatusError", "APIStatusError"),
        "Request timed out, please try again later.",
    ),
]


@pytest.mark.filterwarnings("ignore:Sending a large body:ResourceWarning")
@pytest.mark.parametrize("way", WAYS)
def test_each_situation(way: str, live: Live) -> None:
    for row in TABLE:
        live.instruct.reset()
        told = row.happens(way, live)
        code = row.native if way in NATIVE else row.compat
        assert (told.status, told.code) == (row.status, code), (row, told)
        assert row.words in told.message and "Traceback" not in told.message
        assert told.text == "" and len(told.request_id) == 36
        if "generation" not in way:
            assert told.raised == row.raised["client" in way]


@pytest.mark.parametrize("way", COMPAT)
def test_the_words_that_gateways_look_for(way: str, live: Live) -> None:
    """LiteLLM takes a 401 for a bad request without them."""
    assert "Incorrect API key provided" in wrong_key(way, live).message


@pytest.mark.parametrize("way", [way for way in WAYS if way.endswith("stream")])
def test_in_mid_stream(way: str, live: Live) -> None:
    live.instruct.fail("Hello there")
    told = ask(way, live, INSTRUCT)
    assert told.text == "Hello there" and told.finish is None
    assert told.code == ("InternalError" if way in NATIVE else "internal_error")
    assert told.message == "An internal error has occurred, please try again later."
    if "generation" in way:
        assert told.status == 500 and len(told.request_id) == 36
    else:
        assert told.raised


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("POST", "/api/v1/services/aigc/multimodal-generation/generation", 400, "UnsupportedOperation"),
        ("GET", "/api/v1/nowhere", 404, "InvalidURL"),
        ("GET", "/api/v1/services/aigc/text-generation/generation", 405, "MethodNotAllowed"),
        ("POST", "/compatible-mode/v1/nowhere", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
    ],
)
def test_wrong_urls(live: Live, method: str, path: str, status: int, code: str) -> None:
    answer = httpx.request(method, live.url + path, headers=live.auth)
    body: Any = answer.json()
    assert answer.status_code == status and body["request_id"] == answer.headers["X-Request-ID"]
    assert (body if path.startswith("/api") else body["error"])["code"] == code


@pytest.mark.parametrize(
    "path", ["//api/v1//services/aigc/text-generation//generation", "/v1//chat/completions/"]
)
def test_slashes_too_many(live: Live, path: str) -> None:
    body = {"model": INSTRUCT, "messages": HI, "input": {"messages": HI}}
    assert httpx.post(live.url + path, json=body, headers=live.auth).status_code == 200


def test_a_refusal_says_when_to_come_back(live: Live) -> None:
    live.instruct.refusal = RuntimeError("full")
    for path in ("/api/v1/services/aigc/text-generation/generation", "/v1/chat/completions"):
        body = {"model": INSTRUCT, "messages": HI, "input": {"messages": HI}}
        answer = httpx.post(live.url + path, json=body, headers=live.auth)
        assert answer.status_code == 503 and int(answer.headers["Retry-After"]) >= 1
