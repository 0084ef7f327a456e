"""What Anthropic's dialect refuses, and how, seen by the real SDK."""

from __future__ import annotations

from typing import Any

import anthropic
import httpx
import pytest

from .conftest import Live
from .test_sdk_anthropic import HI, WEATHER, ask, sdk

BLOCK = {"type": "image", "source": {"type": "url", "url": "https://example.com/x.png"}}
USE = {"type": "tool_use", "id": "c1", "name": "f", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "c1", "content": "x"}


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"max_tokens": None}, "max_tokens: Field required"),
        ({"max_tokens": 0}, "Range of max_tokens should be"),
        ({"messages": []}, "at least one message"),
        ({"messages": "Hi"}, "at least one message"),
        ({"messages": ["Hi"]}, "messages.0.role"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": []}]}, "messages.0.content: must not be empty"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [BLOCK]}]}, "'image' are not supported"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "must have a text"),
        ({"messages": [{"role": "user", "content": [RESULT]}]}, "must answer a tool_use"),
        ({"messages": [*HI, {"role": "assistant", "content": [USE]}]}, "send their tool_result"),
        (
            {"messages": [*HI, {"role": "assistant", "content": [{**USE, "input": "x"}]}]},
            "messages.1.content.0.input",
        ),
        ({"messages": [*HI, {"role": "assistant", "content": [{"type": "thinking"}]}]}, "0.thinking"),
        ({"system": [BLOCK]}, "system: blocks of type 'image'"),
        ({"temperature": 2}, "Temperature should be in"),
        ({"stop_sequences": "x"}, "stop_sequences"),
        ({"tools": [{"name": "f"}]}, "tools.0.input_schema"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, r"tools\[0\].name must be"),
        (
            {"tools": [{"name": "f", "input_schema": {"type": "array"}}], "tool_choice": {"type": "any"}},
            "input_schema",
        ),
        ({"tool_choice": {"type": "any"}}, "no tools are given"),
        ({"tool_choice": "auto"}, "tool_choice: must be"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice names 'g'"),
        ({"thinking": {"type": "maybe"}}, "thinking.type"),
        ({"model": "tiny-thinking", "thinking": {"type": "disabled"}}, "always thinks"),
        ({"model": "tiny-thinking", "thinking": {"type": "enabled", "budget_tokens": 0}}, "budget_tokens"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format"),
        ({"output_config": {"format": {"type": "json_schema", "schema": 5}}}, "output_config.format"),
        ({"mcp_servers": [{"url": "x"}]}, "mcp_servers"),
        ({"stream": "yes"}, "'stream' must be Boolean"),
        ({"model": "tiny-base"}, "no chat template"),
        ({"model": 5}, "model: Field required"),
    ],
)
def test_bad_requests_are_refused_by_name(live: Live, more: Any, word: str) -> None:
    body = {"model": "tiny-instruct", "max_tokens": 9, "messages": HI, **more}
    with sdk(live) as client, pytest.raises(anthropic.BadRequestError, match=word) as caught:
        client.post("/v1/messages", body=body, cast_to=anthropic.types.Message)
    told: Any = caught.value.body
    assert told["type"] == "error" and told["error"]["type"] == "invalid_request_error"
    assert told["request_id"] == caught.value.request_id


def test_error_classes(live: Live) -> None:
    with sdk(live) as client:
        with pytest.raises(anthropic.NotFoundError, match="does not exist"):
            ask(client, model="gpt-9")
        live.instruct.refusal = RuntimeError("full")
        with pytest.raises(anthropic.APIStatusError) as caught:
            ask(client)
        assert caught.value.status_code == 503 and "overloaded_error" in str(caught.value)
        live.instruct.refusal = None
        live.instruct.fail("Hello")
        with pytest.raises(anthropic.InternalServerError, match="api_error"):
            ask(client)
        with (
            pytest.raises(anthropic.APIError, match="internal error"),
            client.messages.stream(model="tiny-instruct", max_tokens=9, messages=HI) as stream,
        ):
            stream.get_final_message()
        with pytest.raises(anthropic.AuthenticationError, match="/apps/anthropic"):
            ask(client.with_options(api_key="sk-bad"))
    for path in ("/apps/anthropic/v1/nothing", "/v1/messages"):
        answer = httpx.get(live.url + path)
        assert answer.status_code in (404, 405) and answer.json()["type"] == "error"


def test_either_header_holds_the_key(live: Live) -> None:
    asked = {"model": "tiny-instruct", "max_tokens": 9, "messages": HI}
    url = live.url + "/apps/anthropic/v1/messages"
    for headers, status in (
        ({"x-api-key": live.key}, 200),
        ({"Authorization": f"Bearer {live.key}"}, 200),
        ({"Authorization": f"Bearer {live.key}", "x-api-key": "sk-bad"}, 200),
        ({"Authorization": "Bearer sk-bad", "x-api-key": live.key}, 401),
        ({"x-api-key": "sk-bad"}, 401),
        ({}, 401),
    ):
        assert httpx.post(url, json=asked, headers=headers).status_code == status
