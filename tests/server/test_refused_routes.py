"""What a text model cannot serve is refused in words, in the dialect of the path, for holders of a key."""

from __future__ import annotations

import httpx
import openai
import pytest
from openai import OpenAI

from qnext.server.gate import COMPAT_BASES, NATIVE_BASE
from qnext.server.refused_routes import COMPAT, NATIVE

from .conftest import Live


@pytest.mark.parametrize("base", COMPAT_BASES)
@pytest.mark.parametrize("path", COMPAT)
def test_compatible(http: httpx.Client, base: str, path: str) -> None:
    answer = http.post(base + path, content=b"not even JSON")
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "unsupported_operation")
    assert error["message"] == COMPAT[path]


@pytest.mark.parametrize("path", NATIVE)
def test_native(http: httpx.Client, path: str) -> None:
    answer = http.post(NATIVE_BASE + path, json={"model": "x"})
    assert (answer.status_code, answer.json()["code"]) == (400, "UnsupportedOperation")
    assert answer.json()["message"] == NATIVE[path]


def test_the_sdk_says_so(live: Live) -> None:
    with OpenAI(base_url=live.url + "/v1", api_key=live.key, max_retries=0) as client:
        with pytest.raises(openai.BadRequestError, match="Embeddings are not served"):
            client.embeddings.create(model="tiny-instruct", input="x")
        with pytest.raises(openai.BadRequestError, match="Moderations are not served"):
            client.moderations.create(input="x")
        with pytest.raises(openai.AuthenticationError):
            client.with_options(api_key="sk-bad").embeddings.create(model="tiny-instruct", input="x")
