"""Failures, silence, clients that leave, and many at once, on the wire."""

from __future__ import annotations

import json
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from .conftest import Live
from .fake_engine import outputs
from .test_app import CHAT, NATIVE, SSE, chat, frames, native

PARSERS = ("h11", "httptools")


def test_engine_refusals(http: httpx.Client, live: Live) -> None:
    live.instruct.refusal = RuntimeError("queue full")
    full = http.post(NATIVE, json=native(), headers=SSE)
    assert full.status_code == 503 and full.json()["code"] == "ModelServingError"
    assert int(full.headers["retry-after"]) >= 1
    live.instruct.refusal = ValueError("never fits")
    never = http.post(CHAT, json=chat(stream=True, n=2))
    assert never.status_code == 400 and never.json()["error"]["message"] == "never fits"
    live.instruct.refusal = KeyError("a bug")
    for path, body in ((NATIVE, native()), (CHAT, chat(stream=True))):
        bug = http.post(path, json=body)
        assert bug.status_code == 500 and "a bug" not in bug.text and "Traceback" not in bug.text
        assert bug.headers["x-request-id"] == bug.json()["request_id"]
    live.instruct.refusal = None
    assert http.post(NATIVE, json=native()).status_code == 200


def test_failure_before_the_first_token_is_an_http_error(http: httpx.Client, live: Live) -> None:
    live.instruct.fail("")
    for path, body in ((NATIVE, native()), (CHAT, chat(stream=True))):
        answer = http.post(path, json=body, headers=SSE)
        assert answer.status_code == 500 and "boom" not in answer.text


def test_failure_in_mid_stream_is_told(http: httpx.Client, live: Live) -> None:
    live.instruct.fail("Hello there")
    text = http.post(NATIVE, json=native(), headers=SSE).text
    *_, last = text.rstrip("\n").split("\n\n")
    lines = last.split("\n")
    number = len(text.rstrip("\n").split("\n\n"))
    assert lines[:4] == [f"id:{number}", "event:error", ":HTTP_STATUS/500", "status:500"]
    error = json.loads(lines[4].removeprefix("data:"))
    assert error["code"] == "InternalError" and "boom" not in text
    compat = http.post(CHAT, json=chat(stream=True)).text
    assert "[DONE]" not in compat and frames(compat)[-1]["error"]["type"] == "internal_error"
    assert http.post(CHAT, json=chat()).status_code == 500


def test_keep_alive_comments(http: httpx.Client, live: Live) -> None:
    live.instruct.delay = 0.8
    live.instruct.say("Hello", pieces=99)
    text = http.post(NATIVE, json=native(), headers=SSE).text
    assert text.startswith(":keep-alive\n\n") and text.count(":keep-alive\n\n") >= 2
    assert frames(text)[-1]["output"]["text"] == "Hello"


def test_late_failure_of_a_silent_engine_is_told_in_the_stream(http: httpx.Client, live: Live) -> None:
    live.instruct.delay = 0.5
    live.instruct.fail("")
    answer = http.post(NATIVE, json=native(), headers=SSE)
    assert answer.status_code == 200 and "event:error" in answer.text


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_client_that_leaves_aborts_the_engine(live: Live, stream: bool, n: int) -> None:
    live.instruct.delay = 0.05
    live.instruct.say("and " * 200)
    body = json.dumps(chat(stream=stream, n=n)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {live.key}\r\n"
    head += f"Content-Length: {len(body)}\r\n\r\n"
    host, port = live.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(head.encode() + body)
        if stream:
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        else:
            while len(live.instruct.requests) < n:
                threading.Event().wait(0.01)
    live.instruct.wait_for_abort(n)
    assert len(live.instruct.aborted) == n


def test_client_that_leaves_while_the_engine_is_silent(live: Live) -> None:
    live.instruct.delay = 30
    body = json.dumps(native()).encode()
    for headers in ("", "X-DashScope-SSE: enable\r\n"):
        before = len(live.instruct.requests)
        head = f"POST {NATIVE} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {live.key}\r\n{headers}"
        host, port = live.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            while len(live.instruct.requests) == before:
                threading.Event().wait(0.01)
        live.instruct.wait_for_abort(before + 1)


def test_twenty_streams_at_once(live: Live) -> None:
    live.instruct.delay = 0.002
    live.instruct.script = lambda request: _by_prompt(live, request)

    def ask(i: int) -> str:
        body = chat(messages=[{"role": "user", "content": f"number {i}"}], stream=True)
        answer = httpx.post(live.url + CHAT, headers=live.auth, json=body, timeout=30)
        return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in frames(answer.text))

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(ask, range(20))) == [f"You said number {i}." for i in range(20)]


def _by_prompt(live: Live, request: Any) -> Any:
    tokenizer = live.instruct.tokenizer
    said = tokenizer.decode(request.prompt).split("number ")[1].split("\n")[0]
    return outputs(request, [*tokenizer.encode(f"You said number {said}."), request.eos[0]])


def test_odd_hosts_and_raw_garbage(live: Live) -> None:
    host, port = live.url.removeprefix("http://").split(":")
    for raw in (f"GET {CHAT} HTTP/1.1\r\nHost: [\r\n\r\n", "GET /v1/models HTTP/1.1\r\nHost: [::\r\n\r\n"):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(raw.encode())
            assert connection.recv(100).split(b" ")[1] in (b"405", b"401", b"400")
