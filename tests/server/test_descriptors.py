"""A server whose file descriptors are used up by connections: it answers those that it has, refuses what they
ask of it, lets the others wait, and serves again when there is room."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Live
from .test_app import CHAT, chat
from .test_faults import DIALECTS, connect, raw, rest, wait_until
from .test_killed_batch import ROOT

DESCRIPTORS = 256
PROBE = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Live]]:
    command = [sys.executable, "-m", "tests.server.fake_server", str(tmp_path), str(DESCRIPTORS)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url, key = process.stdout.readline().split()
    yield process, Live(url, key, None, {}, None, None, "httptools")  # type: ignore[arg-type]
    process.kill()
    process.communicate()


def asked(connection: socket.socket, sent: bytes, seconds: float = 20) -> bytes:
    """What comes first of an answer; nothing if none comes in time."""
    connection.settimeout(seconds)
    connection.sendall(sent)
    try:
        return connection.recv(2**16)
    except TimeoutError:
        return b""


def test_no_descriptor_is_left(server: tuple[subprocess.Popen[str], Live]) -> None:
    process, live = server

    def used() -> int:
        return len(os.listdir(f"/proc/{process.pid}/fd"))

    with connect(live) as begun:
        before = asked(begun, raw(live, CHAT, chat(stream=True, max_tokens=400)))
        assert before.startswith(b"HTTP/1.1 200")
        idle = [connect(live) for _ in range(DESCRIPTORS + 50)]
        wait_until(lambda: used() >= DESCRIPTORS - 1)
        late = connect(live)
        assert asked(late, raw(live, CHAT, chat(stream=True)), 0.5) == b""  # waits to be let in
        for connection, (path, body) in zip(idle, DIALECTS.values(), strict=False):
            refused = asked(connection, raw(live, path, body)) + rest(connection)
            head, _, told = refused.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503") and b"retry-after:" in head.lower()
            assert json.loads(told) and b"as many connections as it can hold" in told
        assert asked(idle[20], PROBE).startswith(b"HTTP/1.1 200")
        text = before
        while b"[DONE]" not in text:
            piece = begun.recv(2**16)
            assert piece, text
            text += piece
        assert text.count(b'"content"') >= 400
    for connection in idle:
        connection.close()
    late.settimeout(20)
    assert late.recv(2**16).startswith(b"HTTP/1.1 200")
    late.close()
    wait_until(lambda: used() < 60)
    served(live, 100)
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=30)
    assert process.returncode == 0 and "Traceback" not in log and log.count("\n") < 10, log


def served(live: Live, count: int) -> None:
    """So many requests at once are answered."""
    connections = [connect(live) for _ in range(count)]
    for connection in connections:
        connection.sendall(raw(live, CHAT, chat()))
    for connection in connections:
        assert connection.recv(2**16).startswith(b"HTTP/1.1 200")
        connection.close()
