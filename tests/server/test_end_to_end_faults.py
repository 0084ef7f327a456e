"""Whatever ends a request of a real engine, over the wire and in every dialect: its pages and its slot come
back, what was set aside for it is free, and the next request is answered."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import httpx
import pytest

from qnext.engine.config import EngineConfig
from qnext.engine.engine import Engine
from qnext.engine.request import Request
from qnext.engine.stats import Stats
from qnext.engine.stream import Stream
from qnext.models import locate
from qnext.server.service import Served, Service
from qnext.server.settings import Settings
from qnext.text.chat import Chat

from .conftest import CREATED, Live, serving
from .test_app import CHAT, SSE, chat
from .test_faults import DIALECTS, connect, raw, wait_until

CONTEXT = 640
SECRET = "a secret of the kernel"


class Talkative:
    """A real engine whose answers go on until their room is used up."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def submit(self, request: Request) -> Stream:
        return self.engine.submit(replace(request, eos=()))

    def stats(self) -> Stats:
        return self.engine.stats()


@dataclass
class Real:
    live: Live
    engine: Engine
    service: Service

    def begins(self) -> None:
        """Returns when a request holds a slot and pages."""
        wait_until(lambda: self.engine.stats().slots_used and self.engine.stats().pages_used, 60)

    def is_idle(self) -> bool:
        stats = self.engine.stats()
        return not (stats.running or stats.waiting or stats.slots_used or stats.pages_used)

    def ask(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return httpx.post(self.live.url + path, json=body, headers={**self.live.auth, **SSE}, timeout=60)


@pytest.fixture(scope="module")
def real(settings: Settings) -> Iterator[Real]:
    config = EngineConfig(max_sequences=4, max_length=CONTEXT)
    with Engine.from_pretrained(locate("tiny-instruct"), config) as engine:
        chat = Chat.from_pretrained(locate("tiny-instruct"))
        served = Served("tiny-instruct", Talkative(engine), chat, engine.max_length, CREATED)
        settings = replace(settings, keep_alive=60)  # on a busy machine too a failure comes before a comment
        service = Service({served.name: served}, settings)
        with serving(service, {}, settings, "httptools") as live:
            _, live.key = live.keys.create("limited", concurrency=9, tpm=10**9, free_tokens=10**9)
            yield Real(live, engine, service)


@contextmanager
def slow_steps(real: Real) -> Iterator[None]:
    """Steps take as long as a large model's: an answer of 600 tokens is not over before anybody looks."""
    runner = real.engine._steps.runner
    run = runner.run

    def slow(pieces: Any) -> Any:
        time.sleep(0.03)
        return run(pieces)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "run", slow)
        yield


def client_gone_in_mid_stream(real: Real, path: str, body: dict[str, Any]) -> None:
    asked = {"json": body, "headers": {**real.live.auth, **SSE}, "timeout": 60}
    with slow_steps(real), httpx.stream("POST", real.live.url + path, **asked) as answer:
        lines = answer.iter_lines()  # kept: the client leaves when it is thrown away
        next(lines)
        real.begins()


def client_gone_before_it_was_told(real: Real, path: str, body: dict[str, Any]) -> None:
    whole = body | {"stream": False, "parameters": {}}
    sent = raw(real.live, path, whole).replace(b"X-DashScope-SSE", b"X-Nothing")
    with slow_steps(real), connect(real.live) as connection:
        connection.sendall(sent)
        real.begins()


def model_fails(real: Real, path: str, body: dict[str, Any], after: int) -> httpx.Response:
    """After so many steps."""
    runner, steps = real.engine._steps.runner, count()
    run = runner.run

    def failing(pieces: Any) -> Any:
        if next(steps) >= after:
            raise RuntimeError(SECRET)
        return run(pieces)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "run", failing)
        answer = real.ask(path, body)
    assert next(steps) > after and SECRET not in answer.text and "rror" in answer.text
    return answer


def model_fails_at_once(real: Real, path: str, body: dict[str, Any]) -> None:
    assert model_fails(real, path, body, after=0).status_code == 500


def model_fails_in_mid_stream(real: Real, path: str, body: dict[str, Any]) -> None:
    answer = model_fails(real, path, body, after=40)  # the first few tokens may have no text yet
    assert answer.status_code == 200


def prompt_too_long(real: Real, path: str, body: dict[str, Any]) -> None:
    answer = real.ask(path, json.loads(json.dumps(body).replace('"Hi"', f'"{"far too long " * 400}"')))
    assert answer.status_code == 400
    assert f"Range of input length should be [1, {CONTEXT - 1}]" in answer.text


def context_is_full(real: Real, path: str, body: dict[str, Any]) -> None:
    answer = real.ask(path, body)
    assert answer.status_code == 200
    assert "length" in answer.text or "max_tokens" in answer.text or "response.incomplete" in answer.text


def server_ends_it(real: Real, path: str, body: dict[str, Any]) -> None:
    asked = {"json": body, "headers": {**real.live.auth, **SSE}, "timeout": 60}
    with slow_steps(real), httpx.stream("POST", real.live.url + path, **asked) as answer:
        lines = answer.iter_lines()
        next(lines)
        real.begins()
        real.service.end_all()
        assert "shutting down" in "\n".join(lines)


FAULTS = [
    client_gone_in_mid_stream,
    client_gone_before_it_was_told,
    model_fails_at_once,
    model_fails_in_mid_stream,
    prompt_too_long,
    context_is_full,
    server_ends_it,
]


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("fault", FAULTS)
def test_pages_and_slots_come_back(real: Real, fault: Any, dialect: str) -> None:
    assert real.is_idle()
    path, body = DIALECTS[dialect]
    fault(real, path, body)
    wait_until(real.is_idle, 60)
    wait_until(lambda: not real.live.admission.ledger.servers(), 60)
    assert not real.live.admission.limits._running
    assert real.ask(CHAT, chat(max_tokens=2)).status_code == 200
