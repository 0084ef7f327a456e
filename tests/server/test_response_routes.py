"""Stored responses, pages of items, and what the Responses API refuses, by the real SDK."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from qnext.server.response_store import DAY, StoredResponse, StoredResponses
from qnext.server.store import open_store

from .conftest import Live
from .test_sdk_responses import CALL, WEATHER, ask, sdk, shown


@pytest.fixture
def client(live: Live) -> Iterator[OpenAI]:
    with sdk(live) as client:
        yield client


@pytest.mark.parametrize("stream", [True, False])
def test_a_response_is_kept_until_it_is_deleted(client: OpenAI, stream: bool) -> None:
    answer = ask(client, stream=stream)
    if stream:
        answer = list(answer)[-1].response
    assert client.responses.retrieve(answer.id) == answer
    client.responses.delete(answer.id)
    for gone in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
        with pytest.raises(openai.NotFoundError, match="No such response"):
            gone(answer.id)
    with pytest.raises(openai.BadRequestError, match="not found") as caught:
        ask(client, previous_response_id=answer.id)
    assert caught.value.param == "previous_response_id"


def test_what_is_not_stored_is_not_there(client: OpenAI) -> None:
    answer = ask(client, store=False)
    assert answer.store is False
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(answer.id)


def test_another_key_finds_nothing(client: OpenAI, live: Live) -> None:
    answer = ask(client)
    _, secret = live.keys.create("other")
    other = client.with_options(api_key=secret)
    for refused in (other.responses.retrieve, other.responses.delete, other.responses.input_items.list):
        with pytest.raises(openai.NotFoundError):
            refused(answer.id)
    with pytest.raises(openai.BadRequestError):
        ask(other, previous_response_id=answer.id)
    assert client.responses.retrieve(answer.id).id == answer.id


def test_a_conversation_outlives_its_beginning(client: OpenAI, live: Live) -> None:
    first = ask(client, input="One", instructions="Rhyme.")
    second = ask(client, input="Two", previous_response_id=first.id)
    client.responses.delete(first.id)
    third = ask(client, input="Three", previous_response_id=second.id)
    assert third.previous_response_id == second.id
    turns = [turn.split("<|im_end|>")[0] for turn in shown(live).split("<|im_start|>")[1:-1]]
    said = "assistant\nHello there, friend."
    assert turns == ["user\nOne", said, "user\nTwo", said, "user\nThree"]


def test_pages_of_items(client: OpenAI, live: Live) -> None:
    live.instruct.say(CALL)
    first = ask(client, input=[{"role": "user", "content": "One", "id": "msg_mine"}], tools=[WEATHER])
    result = {"type": "function_call_output", "call_id": first.output[0].call_id, "output": "12"}
    second = ask(client, input=[result, {"role": "user", "content": "Two"}], previous_response_id=first.id)
    items: list[Any] = list(client.responses.input_items.list(second.id, limit=3, order="asc"))
    assert [item.type for item in items] == ["message", "function_call", "function_call_output", "message"]
    assert items[0].id == "msg_mine" and items[0].content[0].text == "One"
    assert items[2].output[0].text == "12" and len({item.id for item in items}) == 4
    backwards = list(client.responses.input_items.list(second.id))
    assert [item.id for item in backwards] == [item.id for item in reversed(items)]
    page = client.responses.input_items.list(second.id, limit=2, order="asc", after="msg_mine")
    assert page.has_more and [item.id for item in page.data] == [items[1].id, items[2].id]
    for wrong in ({"limit": 0}, {"limit": 101}, {"order": "up"}, {"after": "nothing"}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.input_items.list(second.id, **wrong)  # type: ignore[arg-type]
        assert caught.value.param == next(iter(wrong))


def test_input_tokens(client: OpenAI, live: Live) -> None:
    first = ask(client, input="One")
    asked: Any = {"model": "tiny-instruct", "input": "Two", "tools": [WEATHER], "instructions": "Rhyme."}
    count = client.responses.input_tokens.count(**asked, previous_response_id=first.id).input_tokens
    ask(client, **asked, previous_response_id=first.id)
    assert count == len(live.instruct.requests[-1].prompt)


def test_cancel(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(ask(client).id)
    with pytest.raises(openai.NotFoundError):
        client.responses.cancel("resp_nothing")


def test_time_runs_out(tmp_path: Path) -> None:
    now = [1000.0]
    store = open_store(tmp_path)
    stored = StoredResponses(store, 2.0, lambda: now[0])

    def one(name: str) -> StoredResponse:
        return StoredResponse({"id": name, "output": [{"n": "é"}]}, [{"id": "a"}])

    stored.save(1, one("x"))
    now[0] += 1.5 * DAY
    stored.save(1, one("y"))
    found = stored.find(1, "x")
    assert found == one("x") and found.conversation == [{"id": "a"}, {"n": "é"}]
    now[0] += 0.5 * DAY
    assert stored.find(1, "x") is None and not stored.delete(1, "x") and stored.find(1, "y") is not None
    stored.save(2, one("z"))
    with store.connect() as connection:
        names = [row[0] for row in connection.exec_driver_sql("select id from responses order by id")]
    assert names == ["y", "z"]


RESULT = {"type": "function_call_output", "call_id": "c1", "output": "x"}
IMAGE = {"type": "input_image", "image_url": "https://example.com/x.png"}


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    ("more", "param", "word"),
    [
        ({"input": None}, "input", "must be a text or a list"),
        ({"input": ""}, "input", "not empty"),
        ({"input": []}, "input", "not empty"),
        ({"input": ["Hi"]}, "input[0].type", "give message"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "'item_reference'"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role", "one of"),
        ({"input": user(5)}, "input[0].content", "a text or a list"),
        ({"input": user("")}, "input[0].content", "not be empty"),
        ({"input": user([IMAGE])}, "input[0].content[0]", "reads text only"),
        ({"input": user([{"type": "input_text"}])}, "input[0].content[0].text", "must be a text"),
        ({"input": [{"role": "system", "content": "x"}]}, "input", "Role must be user"),
        ({"input": [*user("x"), RESULT]}, "input", "answers no function_call"),
        ({"input": [{**RESULT, "call_id": 5}]}, "input[0].call_id", "must be a text"),
        ({"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]}, "input[0].call_id", "text"),
        ({"input": [{**user("x")[0], "id": 5}]}, "input[0].id", "must be a text"),
        ({"instructions": 5}, "instructions", "must be a text"),
        ({"temperature": 2}, "temperature", "Temperature should be in"),
        ({"max_output_tokens": 0}, "max_output_tokens", "Range of max_output_tokens"),
        ({"background": True}, "background", "not served"),
        ({"conversation": "c"}, "conversation", "previous_response_id"),
        ({"prompt": {"id": "p"}}, "prompt", "not served"),
        ({"previous_response_id": 5}, "previous_response_id", "must be a text"),
        ({"store": "yes"}, "store", "Boolean"),
        ({"metadata": 5}, "metadata", "an object"),
        ({"reasoning": "low"}, "reasoning", "an object"),
        ({"include": "x"}, "include", "list of texts"),
        ({"top_logprobs": 2}, "top_logprobs", "only when include"),
        ({"top_logprobs": 21}, "top_logprobs", "Range of top_logprobs"),
        ({"tools": 5}, "tools", "list of tools"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "'web_search'"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0]", "tools[0].name must be"),
        (
            {"tools": [{**WEATHER, "parameters": {"type": "array"}}], "tool_choice": "required"},
            None,
            "parameters",
        ),
        ({"tool_choice": "required"}, "tool_choice", "no tools are given"),
        ({"tool_choice": "any"}, "tool_choice", "must be"),
        ({"tool_choice": {"type": "mcp"}}, "tool_choice", "must be"),
        ({"tool_choice": 0}, "tool_choice", "must be"),
        ({"tool_choice": {"type": "function", "name": 0}}, "tool_choice", "must be"),
        ({"tool_choice": {"type": "allowed_tools", "tools": [0]}}, "tool_choice", "must be"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "none", "tools": []}}, "tool_choice", "must be"),
        (
            {"tools": [{**WEATHER, "name": "g*"}], "tool_choice": {"type": "allowed_tools", "tools": []}},
            "tools[0]",
            "name must be",
        ),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": "g"}}, "tool_choice", "names 'g'"),
        ({"text": {"format": {"type": "xml"}}}, "text.format", "must be"),
        ({"text": 5}, "text.format", "must be"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format", "text.format"),
        ({"text": {"format": {"type": "json_object"}}}, "input", "'input' must contain the word 'json'"),
        ({"model": "tiny-base"}, "input", "no chat template"),
        ({"model": "tiny-thinking", "enable_thinking": False}, "enable_thinking", "restricted to True"),
        ({"model": None}, "model", "model parameter"),
    ],
)
def test_bad_requests_are_refused_by_name(client: OpenAI, more: Any, param: str | None, word: str) -> None:
    body = {"model": "tiny-instruct", "input": "Hi", **more}
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/responses", body=body, cast_to=object)
    assert word in caught.value.message
    assert param is None or caught.value.param == param


def test_a_stored_response_is_not_streamed(client: OpenAI) -> None:
    answer = ask(client)
    with pytest.raises(openai.BadRequestError, match="stream"):
        client.responses.retrieve(answer.id, stream=True)
