"""A real server on a local port, with fake engines behind the three embedded names."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import certifi
import httpx
import pytest

from qnext.server.admission import Admission
from qnext.server.app import create_app
from qnext.server.keys import Keys
from qnext.server.lifecycle import Lifecycle
from qnext.server.run import make_server
from qnext.server.service import Served, Service
from qnext.server.settings import Settings
from qnext.server.store import open_store
from qnext.text.chat import Chat

from ..process import listener
from ..text.conftest import backend, chats, checkpoint, templates
from .fake_engine import FakeEngine

__all__ = ["backend", "chats", "checkpoint", "templates"]

CONTEXT = 600
CREATED = 1_757_600_000


@dataclass
class Live:
    """A running server. `key` works; `instruct`, `thinking` and `base` are the engines."""

    url: str
    key: str
    keys: Keys
    engines: dict[str, FakeEngine]
    admission: Admission
    lifecycle: Lifecycle
    http: str

    @property
    def instruct(self) -> FakeEngine:
        return self.engines["instruct"]

    @property
    def thinking(self) -> FakeEngine:
        return self.engines["thinking"]

    @property
    def base(self) -> FakeEngine:
        return self.engines["base"]

    @property
    def auth(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


@pytest.fixture(scope="session", autouse=True)
def one_certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every client of the SDKs reads all certificates when it is made, for longer than its requests take;
    over plain HTTP one does."""
    first, end, _ = Path(certifi.where()).read_text("utf-8").partition("-----END CERTIFICATE-----\n")
    file = tmp_path_factory.mktemp("certificates") / "one.pem"
    file.write_text(first + end, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(file))
        yield


@pytest.fixture(scope="session")
def engines(chats: dict[str, Chat]) -> dict[str, FakeEngine]:
    return {variant: FakeEngine(chat.tokenizer) for variant, chat in chats.items()}


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(home=tmp_path_factory.mktemp("home"), keep_alive=0.3, max_body_bytes=2**20)


@pytest.fixture(scope="session")
def service(chats: dict[str, Chat], engines: dict[str, FakeEngine], settings: Settings) -> Service:
    served = [Served(f"tiny-{name}", engines[name], chats[name], CONTEXT, CREATED) for name in chats]
    return Service({each.name: each for each in served}, settings)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Modules that look at the wire itself name the `PARSERS` of it to be tried; what is said over it does
    not hang on the parser."""
    parsers = getattr(metafunc.module, "PARSERS", None)
    if parsers and "running" in metafunc.fixturenames:
        metafunc.parametrize("running", parsers, indirect=True, scope="session")


@pytest.fixture(scope="session")
def running(
    request: pytest.FixtureRequest, service: Service, engines: dict[str, FakeEngine], settings: Settings
) -> Iterator[Live]:
    with serving(service, engines, settings, getattr(request, "param", "httptools")) as live:
        yield live


@contextmanager
def serving(
    service: Service, engines: dict[str, FakeEngine], settings: Settings, http: Literal["h11", "httptools"]
) -> Iterator[Live]:
    """A server of one's own."""
    store = open_store(settings.home)
    keys, admission = Keys(store), Admission(store, settings)
    _, secret = keys.create("tests")
    lifecycle = Lifecycle()
    app = create_app(service, keys, admission, settings, lifecycle)
    server = make_server(app, settings, lifecycle, service.end_all, http)
    with listener() as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            url = f"http://127.0.0.1:{listening.getsockname()[1]}"
            yield Live(url, secret, keys, engines, admission, lifecycle, http)
        finally:
            server.should_exit = True
            thread.join()
            admission.close()


@pytest.fixture
def live(running: Live) -> Live:
    for engine in running.engines.values():
        engine.reset()
    return running


@pytest.fixture
def http(live: Live) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live.url, headers=live.auth, timeout=10) as client:
        yield client


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(open_store(tmp_path / "home"))
