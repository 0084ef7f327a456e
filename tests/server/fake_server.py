"""A whole server with a fake engine, as a process of its own: `python -m tests.server.fake_server HOME`.

It prints its address and a new key, then serves until it is stopped or killed.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import uvicorn

from qnext.models import locate
from qnext.server.admission import Admission
from qnext.server.app import create_app
from qnext.server.keys import Keys
from qnext.server.service import Served, Service
from qnext.server.settings import Settings
from qnext.server.store import open_store
from qnext.text.chat import Chat

from .fake_engine import FakeEngine


def main(home: Path) -> None:
    settings = Settings(home=home)
    store = open_store(home)
    keys = Keys(store)
    chat = Chat.from_pretrained(locate("tiny-instruct"))
    engine = FakeEngine(chat.tokenizer)
    engine.delay = 0.005
    engine.say("One two three.")
    served = Served("tiny-instruct", engine, chat, 1000, 0)
    app = create_app(Service({served.name: served}, settings), keys, Admission(store, settings), settings)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]} {keys.create()[1]}", flush=True)
        server.run(sockets=[listener])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
