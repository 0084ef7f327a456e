"""Prompts of ten megabytes: refused soon, while everyone else is answered."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Any

import httpx
import pytest

from qnext.server.settings import Settings
from qnext.text.tokenizer import Tokenizer

from .conftest import CONTEXT, Live, serving
from .test_app import CHAT, NATIVE

SIZE = 10 * 2**20
TEXTS = {
    "words": "hello world, this is it. " * (SIZE // 25),
    "one word": "a" * SIZE,
    "blanks": " " * SIZE,
    "new lines": "\n" * (SIZE // 2),
    "han": "世界" * (SIZE // 6),
    "control tokens": "<|im_start|>" * (SIZE // 12),
}


@pytest.fixture(scope="module")
def roomy(service: Any, engines: Any, settings: Settings) -> Any:
    """A server that takes bodies of this size."""
    with serving(service, engines, replace(settings, max_body_bytes=16 * 2**20), "httptools") as live:
        yield live


class Pulse(threading.Thread):
    """Asks a server whether it lives, over and over; `worst` is the longest that it took, in seconds."""

    def __init__(self, live: Live) -> None:
        super().__init__()
        self._live, self._ended, self.worst = live, threading.Event(), 0.0
        self.count = 0

    def run(self) -> None:
        with httpx.Client(base_url=self._live.url, timeout=60) as client:
            while not self._ended.wait(0.01):
                begun = time.monotonic()
                assert client.get("/healthz").status_code == 200
                self.worst = max(self.worst, time.monotonic() - begun)
                self.count += 1

    def __enter__(self) -> Pulse:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()


@pytest.mark.parametrize("kind", TEXTS)
def test_they_are_refused_soon(roomy: Live, kind: str) -> None:
    roomy.instruct.reset()
    text = TEXTS[kind]
    messages = [{"role": "user", "content": text}]
    bodies: list[tuple[str, dict[str, Any]]] = [
        (CHAT, {"messages": messages}),
        (NATIVE, {"input": {"prompt": text}}),
        ("/v1/completions", {"prompt": text}),
        ("/v1/messages/count_tokens", {"messages": messages}),
        ("/tokenize", {"prompt": text}),
    ]
    with Pulse(roomy) as pulse:
        for path, body in bodies:
            begun = time.monotonic()
            answer = httpx.post(
                roomy.url + path, json={"model": "tiny-instruct", **body}, headers=roomy.auth, timeout=60
            )
            assert answer.status_code == 400, answer.text[:500]
            assert "Range of input length should be [1, " in answer.text or "blanks in a row" in answer.text
            assert time.monotonic() - begun < 20
    assert pulse.count > 5 and pulse.worst < 2
    assert not roomy.instruct.requests


def test_too_large_a_body_is_refused_before_it_is_read(live: Live) -> None:
    with httpx.Client(base_url=live.url, headers=live.auth, timeout=10) as client:
        answer = client.post(CHAT, content=b" " * SIZE)
        assert answer.status_code == 413
        assert client.get("/v1/models").status_code == 200


def test_the_count_stops_where_it_may(live: Live) -> None:
    tokenizer = live.instruct.tokenizer
    assert tokenizer.count_up_to(["hello world"] * 3, 100) == 3 * len(tokenizer.encode("hello world"))
    assert 100 < tokenizer.count_up_to(TEXTS.values(), 100) <= 2**16
    near = "a " * CONTEXT
    answer = httpx.post(
        live.url + CHAT,
        json={"model": "tiny-instruct", "messages": [{"role": "user", "content": near}]},
        headers=live.auth,
    )
    assert f"should be [1, {CONTEXT - 1}]" in answer.text and "more than" not in answer.text


def test_blanks_that_would_not_end(engines: Any) -> None:
    tokenizer: Tokenizer = engines["instruct"].tokenizer
    with pytest.raises(ValueError, match="1000000 blanks in a row"):
        tokenizer.encode("a" + " \n" * 500_001)
    assert tokenizer.decode(tokenizer.encode("a \n" * 40_000)) == "a \n" * 40_000
