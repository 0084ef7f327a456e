"""A whole server that is told to stop while it answers, in every dialect at once."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from qnext.server.ledger import Entry, Ledger
from qnext.server.prices import Tariff
from qnext.server.store import open_store

from ..process import start
from .test_app import CHAT, NATIVE, SSE, chat, frames, native
from .test_faults import MESSAGES

SERVE = ["tiny-instruct", "--cache-gib", "0.2", "--max-length", "4096"]


def asked(letters: int) -> dict[str, tuple[str, dict[str, Any]]]:
    """In each dialect a stream of an answer that has exactly so many letters: path and body."""
    regex = {"structured_outputs": {"regex": f"[ab]{{{letters}}}"}}
    schema = {"type": "string", "pattern": f"^[ab]{{{letters}}}$"}
    form = {"type": "json_schema", "name": "letters", "schema": schema}
    usage = {"stream_options": {"include_usage": True}}
    responses = {"model": "tiny-instruct", "input": "Hi", "stream": True, "text": {"format": form}}
    return {
        "native": (NATIVE, native(max_tokens=3000, incremental_output=True, **regex)),
        "chat": (CHAT, chat(max_tokens=3000, stream=True, **usage, **regex)),
        "responses": ("/v1/responses", {**responses, "max_output_tokens": 3000}),
        "messages": (MESSAGES, chat(max_tokens=3000, stream=True, output_config={"format": form})),
    }


class Streams:
    """One stream for each dialect, each of which has begun."""

    def __init__(self, client: httpx.Client, letters: int, stack: ExitStack) -> None:
        self._answers, self._lines, self._read = {}, {}, {}
        for dialect, (path, body) in asked(letters).items():
            answer = stack.enter_context(client.stream("POST", path, json=body, headers=SSE))
            assert answer.status_code == 200
            self._answers[dialect], self._lines[dialect] = answer, answer.iter_lines()
            self._read[dialect] = [next(self._lines[dialect])]

    def rest(self) -> dict[str, str]:
        """Every stream as a whole, read to its end."""
        return {each: "\n".join([*self._read[each], *lines]) for each, lines in self._lines.items()}

    def entries(self, home: Path) -> dict[str, Entry]:
        """What the ledger says of them."""
        found = {entry.request_id: entry for entry in Ledger(open_store(home), "test", Tariff({})).entries(1)}
        return {each: found[answer.headers["x-request-id"]] for each, answer in self._answers.items()}


def written(dialect: str, told: list[dict[str, Any]]) -> str:
    """The words of an answer, put together from its frames."""
    if dialect == "native":
        return "".join(frame["output"]["text"] for frame in told)
    if dialect == "chat":
        return "".join(c["choices"][0]["delta"].get("content") or "" for c in told if c["choices"])
    deltas = [frame["delta"] for frame in told if frame["type"].endswith(("text.delta", "block_delta"))]
    return "".join(delta if dialect == "responses" else delta["text"] for delta in deltas)


def used(dialect: str, told: list[dict[str, Any]]) -> tuple[int, int]:
    """Tokens in and out, as a frame tells them."""
    if dialect == "chat":
        return told[-1]["usage"]["prompt_tokens"], told[-1]["usage"]["completion_tokens"]
    if dialect == "messages":
        usage = next(frame["usage"] for frame in told if frame["type"] == "message_delta")
        return usage["input_tokens"] + usage["cache_read_input_tokens"], usage["output_tokens"]
    if dialect == "responses":
        told = [frame["response"] for frame in told if frame["type"].split(".")[1] in ("completed", "failed")]
    usage = [frame["usage"] for frame in told if "usage" in frame][-1]
    return usage["input_tokens"], usage["output_tokens"]


@pytest.fixture
def server(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The process, and a client of it; the test's parameter is how long it drains."""
    monkeypatch.setenv("QNEXT_DRAIN_SECONDS", str(request.param))
    process, server = start(SERVE, tmp_path)
    auth = {"Authorization": f"Bearer {server.key}"}
    with httpx.Client(base_url=server.base, headers=auth, timeout=60) as client:
        yield process, client
    process.kill()
    process.communicate()


Started = tuple[subprocess.Popen[str], httpx.Client]
ENDINGS = {
    "native": '"finish_reason":"stop"',
    "chat": "data: [DONE]",
    "responses": "event: response.completed",
    "messages": "event: message_stop",
}
REFUSED = {
    "native": "ModelServingError",
    "chat": "model_serving_error",
    "responses": "model_serving_error",
    "messages": "overloaded_error",
}


@pytest.mark.parametrize("server", [60], indirect=True)
def test_a_stop_signal_drains(server: Started, tmp_path: Path) -> None:
    process, client = server
    assert client.get("/readyz").json() == {"status": "ready"}
    with ExitStack() as stack:
        streams = Streams(client, 400, stack)
        process.send_signal(signal.SIGTERM)
        until = time.monotonic() + 30
        while client.get("/readyz").status_code == 200:
            assert time.monotonic() < until
        assert client.get("/readyz").json() == {"status": "stopping"}
        assert client.get("/healthz").status_code == 200
        for dialect, (path, body) in asked(1).items():
            refused = client.post(path, json=body)
            assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
            assert REFUSED[dialect] in refused.text and "shutting down" in refused.text
        texts = streams.rest()
    assert process.wait(30) == 0
    for dialect, entry in streams.entries(tmp_path).items():
        told = frames(texts[dialect])
        answer = written(dialect, told).strip('"')
        assert len(answer) == 400 and set(answer) <= {"a", "b"}
        assert ENDINGS[dialect] in texts[dialect].rstrip().split("\n\n")[-1]
        assert (entry.input_tokens, entry.output_tokens) == used(dialect, told) and entry.status == "ok"


@pytest.mark.parametrize("server", [0.3], indirect=True)
@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_answers_that_do_not_end_in_time_are_told(
    server: Started, tmp_path: Path, stop: signal.Signals
) -> None:
    process, client = server
    with ExitStack() as stack:
        streams = Streams(client, 3000, stack)
        process.send_signal(stop)
        texts = streams.rest()
    assert process.wait(30) == 0
    entries = streams.entries(tmp_path)
    for dialect, text in texts.items():
        told, last = frames(text), text.rstrip().split("\n\n")[-1]
        assert "shutting down" in last and ENDINGS[dialect] not in text
        assert 0 < len(written(dialect, told[:-1]).strip('"')) < 3000
        assert entries[dialect].status == "failed" and entries[dialect].output_tokens > 0
        if dialect == "native":
            assert "event:error\n" in last and "status:503\n" in last
            assert told[-1]["code"] == "ModelServingError"
        elif dialect == "responses":
            assert told[-1]["type"] == "response.failed" and told[-1]["response"]["status"] == "failed"
            assert told[-1]["response"]["error"]["code"] == "server_error"
        elif dialect == "messages":
            assert told[-1]["type"] == "error" and told[-1]["error"]["type"] == "overloaded_error"
        else:
            assert told[-1]["error"]["code"] == "model_serving_error"
        if dialect in ("native", "responses"):  # the others tell the use at the end alone
            told_use = used(dialect, told if dialect == "responses" else told[:-1])
            assert (entries[dialect].input_tokens, entries[dialect].output_tokens) == told_use


@pytest.mark.parametrize("server", [60], indirect=True)
def test_a_second_signal_does_not_wait(server: Started) -> None:
    process, client = server
    path, body = asked(3000)["chat"]
    with client.stream("POST", path, json=body) as stream:
        lines = stream.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert "shutting down" in "\n".join(lines)
    assert process.wait(30) == 0
