"""Running the server: the port is checked before models are loaded, then uvicorn has the process.

Called by `cli`. Invariant: a stop signal lets answers finish for a few seconds, then cancels them, so that
the process always ends.
"""

from __future__ import annotations

import socket

import uvicorn
from starlette.types import ASGIApp

# SDKs reuse idle connections for a minute or so; a server that closes them sooner makes requests fail.
IDLE_SECONDS = 75
DRAIN_SECONDS = 10


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


def serve(app: ASGIApp, host: str, port: int) -> None:
    """Serves until a signal ends it."""
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="warning",
        lifespan="on",
        timeout_keep_alive=IDLE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )
