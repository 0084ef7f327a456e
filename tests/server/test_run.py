from __future__ import annotations

import gc
import socket
from typing import Any

import pytest

from qnext.server import run
from qnext.server.run import check_port


def test_a_free_port_is_fine() -> None:
    check_port("127.0.0.1", 0)


def test_a_port_in_use_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} of 127.0.0.1 cannot be used"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)


def test_an_unknown_host_is_refused() -> None:
    with pytest.raises(ValueError, match=r"host no\.such\.host\.invalid"):
        check_port("no.such.host.invalid", 80)


def test_what_is_loaded_is_not_looked_over_for_cycles(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen: list[int] = []

    class Server:
        def run(self) -> None:
            frozen.append(gc.get_freeze_count())

    monkeypatch.setattr(run, "make_server", lambda *given: Server())
    nothing: Any = None
    try:
        run.serve(nothing, nothing, nothing, nothing)
    finally:
        gc.unfreeze()
    assert frozen[0] > 1000
