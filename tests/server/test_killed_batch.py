"""A server that is killed at any moment of a batch, and started again: every line is answered once."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from ..process import start, stop

ROOT = Path(__file__).parent.parent.parent
SERVE = ["tiny-instruct", "--dtype", "float32", "--cache-gib", "0.2", "--max-length", "1024"]
LINES = 500
Start = Callable[[Path], tuple["subprocess.Popen[str]", str, str]]
"""Starts a server on a home: the process, its address, and a key (empty if there have been some)."""


def fake(home: Path) -> tuple[subprocess.Popen[str], str, str]:
    command = [sys.executable, "-m", "tests.server.fake_server", str(home)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    base, key = process.stdout.readline().split()
    return process, base, key


def real(home: Path) -> tuple[subprocess.Popen[str], str, str]:
    process, server = start(SERVE, home)
    return process, server.base, server.key


def content(count: int) -> bytes:
    """Every tenth line is one that cannot be answered."""
    lines = []
    for i in range(count):
        body = {"model": "tiny-instruct", "prompt": f"{i} and", "max_tokens": 2, "seed": i}
        body |= {"temperature": 7} if i % 10 == 0 else {}
        url = "/v1/completions"
        lines.append(json.dumps({"custom_id": f"line-{i}", "method": "POST", "url": url, "body": body}))
    return "\n".join(lines).encode()


def ready(base: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            if httpx.get(f"{base}/healthz").status_code == 200:
                return
        except httpx.HTTPError:
            pass
        assert time.monotonic() < deadline, "the server does not answer"
        time.sleep(0.02)


def answered_lines(home: Path) -> int:
    """What a killed server has left."""
    with closing(sqlite3.connect(home / "qnext.db")) as store:
        return int(store.execute("SELECT completed + failed FROM batches").fetchone()[0])


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("run", "kills", "longest", "how"),
    [
        pytest.param(fake, 1, 1.5, signal.SIGKILL, id="killed"),
        pytest.param(fake, 1, 1.5, signal.SIGTERM, id="stopped"),
        pytest.param(fake, 30, 0.4, signal.SIGKILL, id="killed often", marks=pytest.mark.slow),
        pytest.param(real, 3, 20.0, signal.SIGKILL, id="killed with a model", marks=pytest.mark.slow),
    ],
)
def test_every_line_is_answered_once_whenever_the_server_is_killed(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    run: Start,
    kills: int,
    longest: float,
    how: signal.Signals,
) -> None:
    process, base, key = run(tmp_path)
    request.addfinalizer(lambda: (process.kill(), process.communicate()))
    ready(base)

    def client() -> OpenAI:
        return OpenAI(base_url=base + "/v1", api_key=key, timeout=60)

    with client() as asking:
        file = asking.files.create(file=("lines.jsonl", content(LINES)), purpose="batch")
        batch = asking.batches.create(
            input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
        )
    counts: list[int] = []
    for _ in range(kills):
        time.sleep(random.uniform(0, longest))
        process.send_signal(how)
        process.communicate(timeout=30)
        counts.append(answered_lines(tmp_path))
        process, base, _ = run(tmp_path)
        ready(base)
    assert counts == sorted(counts), "answers were lost"
    with client() as asking:
        while (now := asking.batches.retrieve(batch.id)).status != "completed":
            assert now.status in ("validating", "in_progress", "finalizing"), now
            time.sleep(0.1)
        assert now.output_file_id is not None and now.error_file_id is not None
        answered, failed = (
            [json.loads(line) for line in asking.files.content(name).text.splitlines()]
            for name in (now.output_file_id, now.error_file_id)
        )
        kept = {each.id for each in asking.files.list()}
    assert [line["custom_id"] for line in answered] == [f"line-{i}" for i in range(LINES) if i % 10]
    assert [line["custom_id"] for line in failed] == [f"line-{i}" for i in range(0, LINES, 10)]
    assert len({line["id"] for line in answered + failed}) == LINES
    assert {line["response"]["status_code"] for line in answered} == {200}
    usages = [line["response"]["body"]["usage"]["total_tokens"] for line in answered]
    assert now.usage is not None and now.usage.total_tokens == sum(usages)
    assert now.request_counts is not None and now.request_counts.total == LINES
    assert {path.name for path in (tmp_path / "files").iterdir()} == kept and len(kept) == 3
    stop(process)
    print(f"{how.name} after {counts} of {LINES} lines")
