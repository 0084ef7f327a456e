"""A whole server that is told to stop while it answers."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from qnext.server.ledger import Entry, Ledger
from qnext.server.store import open_store

from ..process import Server, start
from .test_app import CHAT, NATIVE, SSE, chat, frames, native

SERVE = ["tiny-instruct", "--cache-gib", "0.2", "--max-length", "4096"]


def long_answer(letters: int, **more: Any) -> dict[str, Any]:
    """A chat whose answer has exactly so many letters."""
    return chat(structured_outputs={"regex": f"[ab]{{{letters}}}"}, max_tokens=3000, **more)


def rows(home: Path) -> list[Entry]:
    return Ledger(open_store(home), "test", {}).entries(1)


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The process and the server; the test's parameter is how long it drains."""
    monkeypatch.setenv("QNEXT_DRAIN_SECONDS", str(request.param))
    process, server = start(SERVE, tmp_path)
    yield process, server
    process.kill()
    process.communicate()


Started = tuple[subprocess.Popen[str], Server]


@pytest.mark.parametrize("server", [60], indirect=True)
def test_a_stop_signal_drains(server: Started, tmp_path: Path) -> None:
    process, running = server
    auth = {"Authorization": f"Bearer {running.key}"}
    with httpx.Client(base_url=running.base, headers=auth, timeout=60) as client:
        assert client.get("/readyz").json() == {"status": "ready"}
        assert client.post(CHAT, json=chat(max_tokens=4)).status_code == 200
        body = long_answer(400, stream=True, stream_options={"include_usage": True})
        with client.stream("POST", CHAT, json=body) as stream:
            lines = stream.iter_lines()
            assert next(lines).startswith("data: ")
            process.send_signal(signal.SIGTERM)
            until = time.monotonic() + 5
            while client.get("/readyz").status_code == 200:
                assert time.monotonic() < until
            assert client.get("/readyz").json() == {"status": "stopping"}
            assert client.get("/healthz").status_code == 200
            for path, other, code in (
                (NATIVE, native(), "ModelServingError"),
                (CHAT, chat(), "model_serving_error"),
            ):
                refused = client.post(path, json=other)
                assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
                assert code in refused.text and "shutting down" in refused.text
            text = "\n".join(lines)
        chunks = frames(text)
    assert text.rstrip().endswith("data: [DONE]")
    answer = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])
    assert len(answer) == 400 and set(answer) <= {"a", "b"}
    assert process.wait(30) == 0
    usage = chunks[-1]["usage"]
    last = rows(tmp_path)[-1]
    assert (last.input_tokens, last.output_tokens) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert last.status == "ok"


@pytest.mark.parametrize("server", [0.3], indirect=True)
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_answers_that_do_not_end_in_time_are_told(
    server: Started, tmp_path: Path, stop: signal.Signals
) -> None:
    process, running = server
    auth = {"Authorization": f"Bearer {running.key}"}
    body = native(max_tokens=3000, incremental_output=True, structured_outputs={"regex": "[ab]{3000}"})
    with httpx.stream(
        "POST", running.base + NATIVE, json=body, headers={**auth, **SSE}, timeout=60
    ) as stream:
        lines = stream.iter_lines()
        read = [next(lines)]
        process.send_signal(stop)
        read += list(lines)
    told = frames("\n".join(read))
    assert "event:error" in read and "status:503" in read
    assert told[-1]["code"] == "ModelServingError" and "shutting down" in told[-1]["message"]
    assert process.wait(30) == 0
    (row,) = rows(tmp_path)
    usage = told[-2]["usage"]
    assert (row.input_tokens, row.output_tokens) == (usage["input_tokens"], usage["output_tokens"])
    assert row.status == "failed"


@pytest.mark.parametrize("server", [60], indirect=True)
def test_a_second_signal_does_not_wait(server: Started) -> None:
    process, running = server
    auth = {"Authorization": f"Bearer {running.key}"}
    body = long_answer(3000, stream=True)
    with httpx.stream("POST", running.base + CHAT, json=body, headers=auth, timeout=60) as stream:
        lines = stream.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert "shutting down" in "\n".join(lines)
    assert process.wait(30) == 0
