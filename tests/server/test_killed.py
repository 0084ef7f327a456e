"""A whole server that is killed while it writes its disk cache, and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from qnext.engine.entry_folder import ASIDE, WHOLE

from ..process import Server, start, stop

SERVE = ["tiny-instruct", "--dtype", "float32", "--cache-gib", "0.2", "--max-length", "1024"]
TORN, SOUND = (
    [f"{name} went to the sea. " + "There was a boat and a fish and a bird. " * 4 for name in names]
    for names in (("Ana", "Tom"), ("Mia", "Ben"))
)


def ask(server: Server, prompt: str, key: str) -> dict[str, Any]:
    """A raw prompt: nothing stands before its own first word."""
    body = {"model": "tiny-instruct", "prompt": prompt, "temperature": 0, "max_tokens": 12}
    url, headers = f"{server.base}/v1/completions", {"Authorization": f"Bearer {key}"}
    answer = httpx.post(url, json=body, headers=headers, timeout=60)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def text(answer: dict[str, Any]) -> str:
    content: str = answer["choices"][0]["text"]
    return content


def cached(answer: dict[str, Any]) -> int:
    count: int = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
    return count


def kill_in_a_write(process: subprocess.Popen[str], server: Server, key: str, folder: Path) -> None:
    """Keep it busy with texts it has not seen; when it has written a few more entries stop it in the middle
    of one, and kill it there."""
    enough = len(list(folder.rglob("*" + WHOLE))) + 4
    numbers = count()

    def busy() -> None:
        while True:
            try:
                ask(server, f"{process.pid} {next(numbers)} " + "and so on " * 20, key)
            except (httpx.HTTPError, OSError):
                return

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(busy) for _ in range(3)]
        deadline = time.monotonic() + 60
        while True:
            assert time.monotonic() < deadline, "no write was ever met"
            if len(list(folder.rglob("*" + WHOLE))) >= enough and any(folder.rglob("*" + ASIDE)):
                process.send_signal(signal.SIGSTOP)
                os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
                if any(folder.rglob("*" + ASIDE)):
                    break
                process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate(timeout=30)
        for each in asking:
            each.result(timeout=60)


def damage(entries: set[Path]) -> None:
    """Tear whole entries too, as a disk would that lies about flushing: cut some, change a byte of others."""
    for number, path in enumerate(sorted(entries)):
        content = bytearray(path.read_bytes())
        content[-len(content) // 3] ^= 64
        path.write_bytes(content[: len(content) // 2] if number % 2 else content)


@pytest.mark.parametrize("rounds", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_a_server_killed_in_a_write_serves_again_and_never_from_a_torn_entry(
    request: pytest.FixtureRequest, tmp_path: Path, rounds: int
) -> None:
    folder, home = tmp_path / "cache", tmp_path / "home"
    arguments = [*SERVE, "--disk-cache", str(folder)]
    process, server = start(arguments, home)
    request.addfinalizer(lambda: (process.kill(), process.communicate()))
    key = server.key
    right = [text(ask(server, prompt, key)) for prompt in TORN]
    torn = set[Path]()
    while len(torn) < 2 * len(TORN):  # of each the prompt's state and the end's
        time.sleep(0.05)
        torn = set(folder.rglob("*" + WHOLE))
    right += [text(ask(server, prompt, key)) for prompt in SOUND]
    for _ in range(rounds):
        kill_in_a_write(process, server, key, folder)
        damage({path for path in torn if path.exists()})
        process, server = start(arguments, home)
        assert not any(folder.rglob("*" + ASIDE))
        answers = [ask(server, prompt, key) for prompt in TORN + SOUND]
        assert [text(each) for each in answers] == right
        assert [cached(each) > 20 for each in answers] == [False] * len(TORN) + [True] * len(SOUND)
    stop(process)
