from __future__ import annotations

import socket

import pytest

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
