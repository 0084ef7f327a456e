"""No descriptor for another connection: it is said once, and what is left of it at a stop is no failure."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from asyncio import constants

import pytest

from qnext.server.connections import Shortage


class Full(socket.socket):
    """A listening socket for whose connections there is never a descriptor."""

    def accept(self) -> tuple[socket.socket, object]:
        raise OSError(errno.EMFILE, "Too many open files")


def run_full(handler: Shortage) -> None:
    """Serves until a connection has waited a while, then stops, with more tries to come."""

    async def serve() -> None:
        asyncio.get_running_loop().set_exception_handler(handler)
        with Full() as listening:
            listening.bind(("127.0.0.1", 0))
            server = await asyncio.start_server(lambda reader, writer: None, sock=listening, backlog=3)
            with socket.create_connection(listening.getsockname()):
                await asyncio.sleep(0.1)
            server.close()
        await asyncio.sleep(0.1)

    asyncio.run(serve())


def test_shortage_is_said_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(constants, "ACCEPT_RETRY_DELAY", 0.03)
    with caplog.at_level(logging.WARNING):
        run_full(Shortage())
    assert [record.getMessage()[:27] for record in caplog.records] == ["no file descriptor is left:"]


def test_shortage_is_said_again(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(constants, "ACCEPT_RETRY_DELAY", 0.03)
    with caplog.at_level(logging.WARNING):
        run_full(Shortage(every=0))
    assert len(caplog.records) > 1 and len({record.getMessage() for record in caplog.records}) == 1


def test_other_exceptions_are_told_whole(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(Shortage())
        loop.call_soon(int, "x")
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    with caplog.at_level(logging.WARNING):
        asyncio.run(fail())
    assert [record.levelname for record in caplog.records] == ["ERROR"] and "invalid literal" in caplog.text
