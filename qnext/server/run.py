"""Running the server: the port is checked before models are loaded, then uvicorn has the process.

Called by `cli`. Invariant: the first stop signal refuses what is new and lets answers finish, for so many
seconds; then they are told that it ends, and it ends. A second signal ends it at once. Either way `serve`
returns, so that what is to be written is written.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from .lifecycle import Lifecycle

# SDKs reuse idle connections for a minute or so; a server that closes them sooner makes requests fail.
IDLE_SECONDS = 75
LAST_WORDS_SECONDS = 2


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


def serve(
    app: ASGIApp, host: str, port: int, lifecycle: Lifecycle, drain: float, end_all: Callable[[], None]
) -> None:
    """Serves until a signal ends it. Answers have `drain` seconds from then on; `end_all` ends those that are
    left."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        log_level="warning",
        lifespan="on",
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=LAST_WORDS_SECONDS,
    )
    _Server(config, lifecycle, drain, end_all).run()


class _Server(uvicorn.Server):
    """uvicorn closes its port at the first signal, and raises the signal again when it is done; this one
    keeps answering while it drains, so that clients read why they are refused, and returns."""

    def __init__(
        self, config: uvicorn.Config, lifecycle: Lifecycle, drain: float, end_all: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._drain = drain
        self._end_all = end_all
        self._deadline = float("inf")

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
        elif self._lifecycle.stopping:
            self._deadline = 0
        else:
            self._deadline = time.monotonic() + self._drain
            self._lifecycle.stop()

    async def on_tick(self, counter: int) -> bool:
        if self._lifecycle.stopping and not self.should_exit:
            late = time.monotonic() >= self._deadline
            if late:
                self._end_all()
            self.should_exit = late or not self._lifecycle.running
        return await super().on_tick(counter)
