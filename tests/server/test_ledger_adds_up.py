"""Two hundred requests at once on one limited key, a third of them given up: the ledger holds what the
clients were told, to the token. Spoken to without sockets, since what a client was told is then known. When
a client leaves hangs on what the engine has done by then and on no clock: slow machines see the same."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from qnext.engine.config import EngineConfig
from qnext.engine.engine import Engine
from qnext.models import locate
from qnext.server.admission import Admission
from qnext.server.app import create_app
from qnext.server.keys import Key, Keys
from qnext.server.prices import UNIT
from qnext.server.service import Served, Service
from qnext.server.settings import Settings
from qnext.server.store import open_store
from qnext.text.chat import Chat

from .fake_engine import FakeEngine
from .test_app import CHAT, NATIVE, chat, frames, native

COUNT, PER_MINUTE, FREE, BALANCE = 200, 4500, 1500, UNIT // 200


@dataclass
class Progress:
    """How many answers and frames of answers all clients have been told together, and who leaves when it is
    how many."""

    told: int = 0
    leaving: list[tuple[int, asyncio.Event]] = field(default_factory=list)

    def add(self, count: int) -> None:
        self.told += count
        for when, gone in self.leaving:
            if self.told >= when:
                gone.set()


@dataclass
class Client:
    """One request. It leaves in mid-stream when it has been told `leaves` frames, or, if it waits for
    nothing of its own, when all have been told `patience` frames together. `used` is what it was told
    last."""

    path: str
    body: dict[str, Any]
    auth: str
    leaves: int | None = None
    patience: int | None = None
    status: int = 0
    name: str = ""
    used: int = 0
    told: list[dict[str, Any]] = field(default_factory=list)

    @property
    def stays(self) -> bool:
        return self.leaves is None and self.patience is None

    async def ask(self, app: FastAPI, progress: Progress) -> None:
        gone, sent = asyncio.Event(), False
        headers = [(b"authorization", self.auth.encode())]
        if self.path == NATIVE and self.body.pop("stream", False):
            headers.append((b"x-dashscope-sse", b"enable"))

        async def receive() -> dict[str, Any]:
            nonlocal sent
            if not sent:
                sent = True
                return {"type": "http.request", "body": json.dumps(self.body).encode()}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                self.name = dict(message["headers"])[b"x-request-id"].decode()
                return
            count = self._read(message["body"].decode())
            if self.status != 200:
                return
            progress.add(count)
            if self.leaves and len(self.told) >= self.leaves:
                gone.set()
                await asyncio.Event().wait()  # it takes nothing more: the server must notice that it is gone

        scope = {
            "type": "http",
            "method": "POST",
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": b"",
            "headers": headers,
            "scheme": "http",
            "server": ("test", 80),
        }
        if self.patience is not None:
            progress.leaving.append((self.patience, gone))
        await app(scope, receive, send)

    def _read(self, text: str) -> int:
        found = [json.loads(text)] if text.startswith("{") else frames(text)
        self.told += found
        for each in found:
            if each.get("usage"):
                self.used = each["usage"]["total_tokens"]
        return len(found)


def clients(model: str, auth: str) -> list[Client]:
    """Streamed and not, both protocols; each third one leaves, in mid-stream or before it was told."""
    dice, made = random.Random(7), []
    for i in range(COUNT):
        length, stream = dice.randint(1, 40), i % 4 < 2
        leaves = dice.randint(1, 5) if stream and not i % 3 and dice.random() < 0.8 else None
        patience = dice.randint(1, 100) if not i % 3 and not leaves else None
        if i % 2 or (stream and not i % 3):  # of those who leave, only native streams tell what was used
            body = native(model, max_tokens=length, incremental_output=True if stream else None)
            made.append(Client(NATIVE, {**body, "stream": stream}, auth, leaves, patience))
        else:
            options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
            body = chat(model, max_tokens=length, **options)
            made.append(Client(CHAT, body, auth, leaves, patience))
    return made


async def storm(app: FastAPI, admission: Admission, asked: list[Client]) -> int:
    """All at once; returns the most tokens that were admitted at any time."""
    limits, level, most = admission.limits, 0, 0
    take, give_back = limits.take_tokens, limits.return_tokens

    async def taking(key_id: int, tokens: int, limit: int) -> tuple[str, int]:
        nonlocal level, most
        taken = await take(key_id, tokens, limit)
        level += tokens
        most = max(most, level)
        return taken

    def returning(minute: str, tokens: int) -> None:
        nonlocal level
        assert tokens >= 0, "more was used than had been reserved"
        level -= tokens
        give_back(minute, tokens)

    limits.take_tokens, limits.return_tokens = taking, returning  # type: ignore[method-assign]
    progress = Progress()
    await asyncio.gather(*(client.ask(app, progress) for client in asked))
    await limits.settled()
    assert level == sum(client.used for client in asked)
    assert not limits._running
    return most


def check(admission: Admission, keys: Keys, key: Key, asked: list[Client], most: int) -> None:
    """The ledger against what the clients were told."""
    ledger = admission.ledger
    rows = {row.request_id: row for row in ledger.entries(key.id)}
    for client in asked:
        row = rows.pop(client.name, None)
        if client.status == 200:
            assert row is not None and row.input_tokens + row.output_tokens == client.used
            assert client.stays <= (row.status == "ok")
    assert not any(row.input_tokens + row.output_tokens for row in rows.values())  # were told nothing
    told = sum(client.used for client in asked)
    entries = ledger.entries(key.id)
    assert told == sum(row.input_tokens + row.output_tokens for row in entries)
    assert told <= most <= PER_MINUTE
    free = sum(row.free_tokens for row in entries)
    assert ledger.free_used(key.id, ledger.month()) == {entries[0].model: free} and free <= FREE
    left = keys.find(key.id).balance
    assert left is not None and left == BALANCE - sum(row.cost for row in entries) and left >= 0
    assert not ledger.servers()  # nothing is left reserved
    counts = Counter(row.status for row in entries)
    # all three happen; how often hangs on who was let in before whom
    assert counts["ok"] > 30 and counts["cancelled"] > 5 and counts["refused"] > 5, counts
    assert free > FREE / 4 and left < BALANCE and most > PER_MINUTE / 2


def run(home: Path, served: Served) -> tuple[FastAPI, list[Client]]:
    settings, store = Settings(home=home, keep_alive=5), open_store(home)
    keys, admission = Keys(store), Admission(store, settings, clock=lambda: 1_795_600_010.0)
    key, secret = keys.create(tpm=PER_MINUTE, free_tokens=FREE, balance=BALANCE, concurrency=180)
    app = create_app(Service({served.name: served}, settings), keys, admission, settings)
    asked = clients(served.name, f"Bearer {secret}")
    most = asyncio.run(storm(app, admission, asked))
    admission.close()
    check(admission, keys, key, asked, most)
    return app, asked


def test_with_an_engine_of_known_words(tmp_path: Path, chats: dict[str, Chat]) -> None:
    engine = FakeEngine(chats["instruct"].tokenizer)
    engine.delay = 0.003
    engine.say("and " * 60)
    _, asked = run(tmp_path, Served("tiny-instruct", engine, chats["instruct"], 600, 0))
    assert sum(client.status == 200 for client in asked) > 60
    admitted, aborted = len(engine.requests), len(engine.aborted)
    assert admitted > 60 and aborted > 3


@pytest.mark.timeout(600)
def test_with_an_embedded_model(tmp_path: Path) -> None:
    path = locate("tiny-instruct")
    with Engine.from_pretrained(path, EngineConfig(max_sequences=32, max_length=768)) as engine:
        served = Served("tiny-instruct", engine, Chat.from_pretrained(path), engine.max_length, 0)
        run(tmp_path, served)
        stats = engine.stats()
        assert stats.counters.aborted > 5
