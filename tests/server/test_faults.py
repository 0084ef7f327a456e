"""Clients that stop in the midst of what they do, many at once, and engines that fail: the server goes on,
and nothing stays behind."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from qnext.engine.request import Output, Request
from qnext.engine.stream import Stream
from qnext.server.settings import Settings

from .conftest import Live, serving
from .fake_engine import FakeEngine
from .test_app import CHAT, NATIVE, chat, native

TIMEOUT = 0.8
MESSAGES = "/apps/anthropic/v1/messages"
DIALECTS: dict[str, tuple[str, dict[str, Any]]] = {
    "native": (NATIVE, native(incremental_output=True, result_format="message")),
    "chat": (CHAT, chat(stream=True)),
    "completions": ("/v1/completions", {"model": "tiny-instruct", "prompt": "Hi", "stream": True}),
    "responses": ("/v1/responses", {"model": "tiny-instruct", "input": "Hi", "stream": True, "store": False}),
    "messages": (MESSAGES, {**chat(stream=True), "max_tokens": 500}),
}


@pytest.fixture(scope="module", params=["h11", "httptools"])
def brisk(
    request: pytest.FixtureRequest, service: Any, engines: dict[str, FakeEngine], settings: Settings
) -> Iterator[Live]:
    """A server that waits for no client, with a key that has every limit."""
    quick = replace(settings, client_timeout=TIMEOUT, max_body_bytes=2**23)
    with serving(service, engines, quick, request.param) as live:
        _, live.key = live.keys.create("limited", concurrency=1000, tpm=10**9, rpm=10**6, free_tokens=10**9)
        yield live


@pytest.fixture
def at_rest(brisk: Live) -> Iterator[Live]:
    """The server; after the test it answers, and holds nothing for anyone."""
    for engine in brisk.engines.values():
        engine.reset()
    yield brisk
    wait_until(lambda: not brisk.lifecycle.running)
    brisk.instruct.reset()
    answer = httpx.post(brisk.url + CHAT, json=chat(), headers=brisk.auth, timeout=10)
    assert answer.status_code == 200, answer.text
    wait_until(lambda: not brisk.admission.ledger.servers())
    assert not brisk.admission.limits._running


def wait_until(true: Any, seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.01)


def connect(live: Live, receive_buffer: int = 0) -> socket.socket:
    host, port = live.url.removeprefix("http://").split(":")
    made = socket.socket()
    if receive_buffer:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    made.settimeout(20)
    made.connect((host, int(port)))
    return made


def raw(live: Live, path: str, body: dict[str, Any], length: int | None = None) -> bytes:
    """A request as bytes; `length` is what it says of its body, where that is not the truth."""
    sent = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {live.key}\r\nX-DashScope-SSE: enable\r\n"
    )
    return f"{head}Content-Length: {len(sent) if length is None else length}\r\n\r\n".encode() + sent


def rest(connection: socket.socket) -> bytes:
    """All that comes until the server closes; a reset is an end too."""
    found = b""
    try:
        while piece := connection.recv(2**16):
            found += piece
    except ConnectionError:
        pass
    return found


@pytest.mark.parametrize("begun", [b"", b"POST /v1/chat/com", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: "])
def test_a_head_that_never_ends(at_rest: Live, begun: bytes) -> None:
    started = time.monotonic()
    with connect(at_rest) as connection:
        connection.sendall(begun)
        connection.settimeout(0.2)
        try:
            while time.monotonic() - started < 10:
                try:
                    if not connection.recv(100):
                        break
                except TimeoutError:
                    connection.sendall(b"x" if begun else b"")
        except ConnectionError:
            pass
    assert TIMEOUT <= time.monotonic() - started < TIMEOUT + 3


def test_a_second_head_that_never_ends(at_rest: Live) -> None:
    told = b""
    with connect(at_rest) as connection:
        for _ in range(2):
            time.sleep(TIMEOUT + 1 if told else 0)  # between two requests a connection may rest
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            told = b""
            while not told.endswith(b"}"):
                told += connection.recv(1000)
            assert told.startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /heal")
        started = time.monotonic()
        assert rest(connection) == b""
        assert time.monotonic() - started < TIMEOUT + 3


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_body_that_never_ends(at_rest: Live, dialect: str) -> None:
    path, body = DIALECTS[dialect]
    with connect(at_rest) as connection:
        connection.sendall(raw(at_rest, path, body, length=10_000))
        answer = rest(connection)
    head, _, told = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408") and b"connection: close" in head.lower()
    assert b"did not come in time" in told and json.loads(told)
    assert not at_rest.instruct.requests


def test_a_form_that_never_ends(at_rest: Live) -> None:
    with connect(at_rest) as connection:
        head = f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {at_rest.key}\r\n"
        head += "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 9999\r\n\r\n--b\r\nContent-"
        connection.sendall(head.encode())
        assert rest(connection).startswith(b"HTTP/1.1 408")


def test_a_large_body_at_a_fair_pace_is_taken(at_rest: Live) -> None:
    body = chat(user="x" * 40_000, stream=False)
    sent = raw(at_rest, CHAT, body)
    with connect(at_rest) as connection:
        for i in range(0, len(sent), 4_000):
            connection.sendall(sent[i : i + 4_000])
            time.sleep(2 * TIMEOUT / 10)
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("part", ["head", "body", "answer"])
def test_half_closed_sockets(at_rest: Live, part: str) -> None:
    at_rest.instruct.delay = 0.05
    at_rest.instruct.say("and " * 200)
    sent = raw(at_rest, CHAT, chat(stream=True))
    with connect(at_rest) as connection:
        connection.sendall({"head": sent[:40], "body": sent[:-10], "answer": sent}[part])
        if part == "answer":
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
        connection.shutdown(socket.SHUT_WR)
        started = time.monotonic()
        rest(connection)
        assert time.monotonic() - started < 3
    if part == "answer":
        at_rest.instruct.wait_for_abort()


def test_a_client_that_stops_reading(at_rest: Live) -> None:
    """Its answer, some megabytes of frames, is given up."""
    _, secret = at_rest.keys.create("without limits")
    word = at_rest.instruct.tokenizer.encode("a")
    at_rest.instruct.script = lambda request: [Output(tuple(word))] * 30_000 + [Output((), (), "stop")]
    with connect(at_rest, receive_buffer=4096) as connection:
        connection.sendall(raw(replace(at_rest, key=secret), CHAT, chat(stream=True)))
        wait_until(lambda: at_rest.lifecycle.running)
        wait_until(lambda: not at_rest.lifecycle.running, 20)
        assert b"[DONE]" not in rest(connection)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_an_engine_that_fails_in_mid_stream(at_rest: Live, dialect: str) -> None:
    at_rest.instruct.fail("Hello there", "a secret of the engine")
    path, body = DIALECTS[dialect]
    headers = {**at_rest.auth, "X-DashScope-SSE": "enable"}
    answer = httpx.post(at_rest.url + path, json=body, headers=headers, timeout=10)
    assert answer.status_code == 200 and "secret" not in answer.text and "[DONE]" not in answer.text
    last = answer.text.rstrip("\n").split("\n\n")[-1]
    told = json.loads(last.split("data:", 1)[1])
    if dialect == "native":
        assert "event:error" in last and told["code"] == "InternalError"
    elif dialect == "responses":
        assert told["type"] == "response.failed" and told["response"]["error"]
    else:
        assert told["error"]["type"] == ("api_error" if dialect == "messages" else "internal_error")


class HeldEngine(FakeEngine):
    """An engine whose answers wait to be told to go on."""

    def submit(self, request: Request) -> Stream:
        self.requests.append(request)
        stream = Stream(request, lambda stream: self.aborted.append(stream.request))
        stream.put(Output(tuple(self.tokenizer.encode("Hello"))))
        self.held.append(stream)
        return stream

    def reset(self) -> None:
        super().reset()
        self.held: list[Stream] = []


def test_a_thousand_streams_at_once(at_rest: Live, service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < 2500:
        pytest.skip("the system gives a process fewer descriptors")
    engine = HeldEngine(at_rest.instruct.tokenizer)
    served = service.find("tiny-instruct")
    monkeypatch.setitem(service._named, "tiny-instruct", replace(served, engine=engine))
    count = 1000 if at_rest.http == "httptools" else 100
    sent = raw(at_rest, CHAT, chat(stream=True))
    connections = []
    try:
        for _ in range(count):
            connections.append(connect(at_rest))
            connections[-1].sendall(sent)
        wait_until(lambda: len(engine.held) == count, 60)
        begun = time.monotonic()
        assert httpx.get(at_rest.url + "/healthz", timeout=10).status_code == 200
        assert time.monotonic() - begun < 2
        for connection in connections[::2]:
            connection.close()
        wait_until(lambda: len(engine.aborted) == count // 2, 30)
        for stream in engine.held:
            stream.put(Output(tuple(engine.tokenizer.encode(" you")), (), "length"))
        for connection in connections[1::2]:
            text = b""
            while b"data: [DONE]" not in text:
                piece = connection.recv(2**16)
                assert piece
                text += piece
            assert text.startswith(b"HTTP/1.1 200") and b'"finish_reason":"length"' in text
    finally:
        for connection in connections:
            connection.close()


def test_more_connections_than_there_is_room_for(at_rest: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at_rest.lifecycle, "full", lambda: True)
    for path, body in DIALECTS.values():
        refused = httpx.post(at_rest.url + path, json=body, headers=at_rest.auth)
        assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
        assert refused.headers["connection"] == "close" and "as many connections" in refused.text
    assert httpx.get(at_rest.url + "/healthz").status_code == 200
