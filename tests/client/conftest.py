"""The server of `tests/server`, with its fake engines, for the client package."""

from ..server.conftest import (
    engines,
    live,
    one_certificate,
    pytest_generate_tests,
    running,
    service,
    settings,
)
from ..text.conftest import backend, chats, checkpoint, templates

__all__ = [
    "backend",
    "chats",
    "checkpoint",
    "engines",
    "live",
    "one_certificate",
    "pytest_generate_tests",
    "running",
    "service",
    "settings",
    "templates",
]
