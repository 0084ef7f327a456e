"""Running the server: the port is checked before models are loaded, then uvicorn has the process.

Called by `cli`. Invariant: the first stop signal refuses what is new and lets answers finish, for so many
seconds; then they are told that it ends, and it ends. A second signal ends it at once. Either way `serve`
returns, so that what is to be written is written. No client can hold it up.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import time
from collections.abc import Callable
from types import FrameType
from typing import Literal

import uvicorn
from starlette.types import ASGIApp

from .connections import Shortage, Watch, room
from .lifecycle import Lifecycle
from .settings import Settings

# SDKs reuse idle connections for a minute or so; a server that closes them sooner makes requests fail.
IDLE_SECONDS = 75
LAST_WORDS_SECONDS = 2
TICKS_A_SWEEP = 5  # of a tenth of a second each


def check_port(host: str, port: int) -> None:
    """Raises ValueError when nothing can listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if isinstance(error, socket.gaierror):
                raise ValueError(f"host {host} is unknown: give an address of this machine") from None
            raise ValueError(
                f"port {port} of {host} cannot be used ({error.strerror}): give another with --port"
            ) from None


def serve(app: ASGIApp, settings: Settings, lifecycle: Lifecycle, end_all: Callable[[], None]) -> None:
    """Serves until a signal ends it. Answers have the settings' time from then on; `end_all` ends those that
    are left."""
    # What is loaded by now stays. To look all of it over for cycles takes a quarter of a second, in the
    # middle of somebody's answer.
    gc.collect()
    gc.freeze()
    make_server(app, settings, lifecycle, end_all).run()


def make_server(
    app: ASGIApp,
    settings: Settings,
    lifecycle: Lifecycle,
    end_all: Callable[[], None],
    http: Literal["auto", "h11", "httptools"] = "auto",
) -> uvicorn.Server:
    """The server that `serve` runs. From the time it is made, `lifecycle` knows when it is full."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=http,
        log_level="warning",
        lifespan="on",
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=LAST_WORDS_SECONDS,
    )
    return _Server(config, settings, lifecycle, end_all)


class _Server(uvicorn.Server):
    """uvicorn closes its port at the first signal, and raises the signal again when it is done; this one
    keeps answering while it drains, so that clients read why they are refused, and returns. uvicorn waits for
    slow clients without end; this one does not."""

    def __init__(
        self, config: uvicorn.Config, settings: Settings, lifecycle: Lifecycle, end_all: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._drain = settings.drain_seconds
        self._end_all = end_all
        self._deadline = float("inf")
        self._watch = Watch(settings.client_timeout)
        self._room = room()
        lifecycle.full = self._full

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(Shortage())
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
        elif self._lifecycle.stopping:
            self._deadline = 0
        else:
            self._deadline = time.monotonic() + self._drain
            self._lifecycle.stop()

    async def on_tick(self, counter: int) -> bool:
        if counter % TICKS_A_SWEEP == 0:
            self._watch.sweep(tuple(self.server_state.connections), time.monotonic())  # type: ignore[arg-type]
        if self._lifecycle.stopping and not self.should_exit:
            late = time.monotonic() >= self._deadline
            if late:
                self._end_all()
            self.should_exit = late or not self._lifecycle.running
        return await super().on_tick(counter)

    def _full(self) -> bool:
        return self._room is not None and len(self.server_state.connections) > self._room
