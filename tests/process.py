"""Servers for tests: a socket to listen on, and a whole `qnext serve` in a process of its own."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

QNEXT = str(Path(sys.executable).parent / "qnext")


@dataclass(frozen=True)
class Server:
    """A running `qnext serve`: its address, its key (empty if its home knew keys already), and what it
    printed when it started."""

    base: str
    key: str
    banner: str


def start(arguments: list[str], home: Path) -> tuple[subprocess.Popen[str], Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [QNEXT, "serve", *arguments, "--port", str(port)],
        env=os.environ | {"QNEXT_HOME": str(home)},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    banner = ""
    for line in process.stderr:
        banner += line
        if "answer.output" in line:
            break
    key = re.search(r"sk-[0-9a-f]{32}", banner)
    assert "answer.output" in banner, banner
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    return process, Server(f"http://127.0.0.1:{port}", key[0] if key else "", banner)


def stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    process.communicate(timeout=30)


def listener() -> socket.socket:
    """A free local port. Said to be TCP, as what uvicorn opens itself: only over such sockets asyncio sends
    the pieces of an answer at once, and over others each answer waits 40 ms for the client's system."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    made.bind(("127.0.0.1", 0))
    made.listen()
    return made
