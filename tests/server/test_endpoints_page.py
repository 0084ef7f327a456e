"""docs/endpoints.md: each path in it is served, by the method it names, and behind a key where it should."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from qnext.server.gate import ANTHROPIC_BASE, COMPAT_BASES, NATIVE_BASE

from .conftest import Live

PAGE = (Path(__file__).parents[2] / "docs" / "endpoints.md").read_text("utf-8")
BASES = {"NATIVE": (NATIVE_BASE,), "COMPAT": COMPAT_BASES, "CLAUDE": (ANTHROPIC_BASE + "/v1",), "": ("",)}
NAMED = sorted(set(re.findall(r"`(GET|POST|DELETE) (NATIVE|COMPAT|CLAUDE|)(/[\w/.-]*)`", PAGE)))
KEYLESS = {"/healthz", "/readyz", "/metrics", "/docs", "/openapi.json", "/openapi-3.2.json"}
PATHS = [(method, base + path) for method, name, path in NAMED for base in BASES[name]]


def test_the_page_was_read() -> None:
    assert len(PATHS) > 50


@pytest.mark.parametrize(("method", "path"), PATHS, ids=lambda value: value)
def test_the_page_is_true(live: Live, method: str, path: str) -> None:
    refused = httpx.request(method, live.url + path)
    assert refused.status_code == (200 if path in KEYLESS else 401), refused.text
    answer = httpx.request(method, live.url + path, headers=live.auth)
    assert answer.status_code in (200, 400, 404) and "Invalid URL" not in answer.text, answer.text
