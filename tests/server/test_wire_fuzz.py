"""Raw bodies and headers, however odd, at every endpoint that takes a body: refused in words, or answered."""

from __future__ import annotations

import json
import logging
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import Live
from .test_app import CHAT, NATIVE
from .test_dialects_fuzz import FIELDS, GOOD, TREES

PATHS = {
    NATIVE: {"input": {"prompt": "Hi"}},
    CHAT: {"messages": [{"role": "user", "content": "Hi"}]},
    "/v1/completions": GOOD["completions"],
    "/v1/responses": GOOD["responses"],
    "/v1/responses/input_tokens": GOOD["responses"],
    "/v1/messages": GOOD["anthropic"],
    "/v1/messages/count_tokens": GOOD["anthropic"],
    "/api/v1/tokenizer": {"input": {"prompt": "Hi"}},
    "/tokenize": GOOD["tokenize"],
    "/detokenize": {"tokens": [1, 2]},
    "/v1/batches": {"input_file_id": "x", "endpoint": "/v1/chat/completions", "completion_window": "24h"},
    "/v1/files": {},
    "/api/v1/files": {},
    "/v1/batches/x/cancel": {},
    "/api/v1/tasks/x/cancel": {},
    "/v1/responses/x/cancel": {},
    "/v1/embeddings": {},
}
MORE = "input parameters n temperature top_p seed stop logprobs top_logprobs stream_options response_format"
MORE += " max_completion_tokens enable_thinking thinking_budget tokens metadata endpoint completion_window"
NAMES = st.sampled_from(sorted({*" ".join(FIELDS.values()).split(), *MORE.split()}))
ODD = st.dictionaries(NAMES, TREES, max_size=4)
SPOILT = st.sampled_from([b"", b"{", b"[]", b"null", b"\xff\xfe{", b'{"a":NaN}', b'{"a":1e999}', b"[" * 9000])
HEADERS = st.dictionaries(
    st.sampled_from(
        "Content-Type Accept X-DashScope-SSE X-DashScope-Async X-DashScope-DataInspection Host Expect "
        "Accept-Encoding Content-Encoding Cookie Range If-Match Anthropic-Version X-Request-ID".split()
    ),
    st.sampled_from(
        [b"", b"enable", b"text/event-stream", b"multipart/form-data", b"multipart/form-data; boundary=b"]
    )
    | st.binary(max_size=9).map(lambda raw: bytes(c for c in raw if c > 32 and c != 127)),
    max_size=3,
)


@pytest.mark.parametrize("path", PATHS)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None
)
@given(data=st.data(), headers=HEADERS)
def test_odd_requests(
    http: httpx.Client, live: Live, caplog: Any, path: str, data: st.DataObject, headers: dict[str, bytes]
) -> None:
    body = {"model": "tiny-instruct", **PATHS[path], **data.draw(ODD)}
    whole = st.just(json.dumps(body).encode())
    raw = data.draw(whole | whole | whole | SPOILT | st.binary(max_size=40))
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        answer = http.post(path, content=raw, headers=headers)
    assert answer.status_code < 500 and answer.status_code != 401, answer.text
    assert "Traceback" not in answer.text
    assert not caplog.records, caplog.text
    if answer.status_code != 200 and "Invalid HTTP request" not in answer.text:
        told = answer.json()
        assert told.get("message") or told["error"]["message"]
