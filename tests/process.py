"""A whole `qnext serve` in a process of its own, for tests that take nothing less."""

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
