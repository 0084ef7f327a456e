"""A whole server with a fake engine, as a process of its own: `python -m tests.server.fake_server HOME
[DESCRIPTORS]`, the second being how many of them the process may have.

It prints its address and a new key, then serves until it is stopped or killed. An answer has three words, or
as many as `max_tokens` says.
"""

from __future__ import annotations

import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from qnext.engine.request import Output, Request
from qnext.models import locate
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
from .fake_engine import FakeEngine, outputs


def main(home: Path, descriptors: int | None = None) -> None:
    if descriptors is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    settings = Settings(home=home)
    store = open_store(home)
    keys, admission, lifecycle = Keys(store), Admission(store, settings), Lifecycle()
    chat = Chat.from_pretrained(locate("tiny-instruct"))
    engine = FakeEngine(chat.tokenizer)
    engine.delay = 0.005

    def words(request: Request) -> Sequence[Output]:
        text = "One two three." if (length := request.sampling.max_tokens) is None else "and " * length
        return outputs(request, [*engine.tokenizer.encode(text), request.eos[0]])

    engine.script = words
    service = Service({"tiny-instruct": Served("tiny-instruct", engine, chat, 1000, 0)}, settings)
    app = create_app(service, keys, admission, settings, lifecycle)
    server = make_server(app, settings, lifecycle, service.end_all)
    with listener() as listening:
        print(f"http://127.0.0.1:{listening.getsockname()[1]} {keys.create()[1]}", flush=True)
        server.run(sockets=[listening])
    admission.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
