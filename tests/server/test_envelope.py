from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from qnext.server.envelope import Envelope, is_native
from qnext.server.lifecycle import Lifecycle
from qnext.server.sse import ClientGone


def run(app: Any, path: str = "/v1/x") -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError

    asyncio.run(Envelope(app, Lifecycle(), 9)({"type": "http", "path": path}, receive, send))
    return sent


@pytest.mark.parametrize(
    ("given", "seen"), [("/v1//a///b/", "/v1/a/b"), ("/", "/"), ("//", "/"), ("/v1/é", "/v1/é")]
)
def test_paths_and_ids(given: str, seen: str) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["path"] == seen and scope["raw_path"] == seen.encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    ids = [dict(run(app, given)[0]["headers"])[b"x-request-id"] for _ in range(2)]
    assert len(ids[0]) == 36 and ids[0] != ids[1]


def test_exceptions_become_the_dialects_error() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError("secret detail")

    for path in ("/v1/x", "/api/v1/x"):
        start, body = run(app, path)
        told = json.loads(body["body"])
        name = dict(start["headers"])[b"x-request-id"].decode()
        assert start["status"] == 500 and told["request_id"] == name and "secret" not in str(told)
        assert (told["code"] if "api" in path else told["error"]["code"]) in (
            "InternalError",
            "internal_error",
        )


def test_a_client_that_has_gone_is_no_error() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise ClientGone

    assert run(app) == []


def test_after_the_start_the_connection_is_cut() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise KeyError

    with pytest.raises(KeyError):
        run(app)


def test_dialect_of_a_path() -> None:
    native = "/services/aigc/text-generation/generation"
    assert (
        is_native("/api/v1/models")
        and is_native("/v1" + native)
        and is_native("/compatible-mode/v1" + native)
    )
    assert not is_native("/v1/models") and not is_native("/") and not is_native("/apis")
