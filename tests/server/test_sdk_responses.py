"""The Responses API by the real `openai` SDK: whole, streamed, parsed, stored; sync and async."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from .conftest import Live

WEATHER: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>'
BASES = ("/compatible-mode/v1", "/v1", "/api/v2/apps/protocols/compatible-mode/v1")


def sdk(live: Live, base: str = "/v1") -> OpenAI:
    return OpenAI(base_url=live.url + base, api_key=live.key, max_retries=0, timeout=10)


@pytest.fixture
def client(live: Live) -> Iterator[OpenAI]:
    with sdk(live) as client:
        yield client


def ask(client: OpenAI, **more: Any) -> Any:
    return client.responses.create(**{"model": "tiny-instruct", "input": "Hi", **more})


def shown(live: Live, model: str = "instruct", number: int = -1) -> str:
    engine = live.engines[model]
    return engine.tokenizer.decode(engine.requests[number].prompt, skip_control=False)


def test_response(client: OpenAI, live: Live) -> None:
    live.instruct.say("Hello there, friend.", cached=3)
    answer = ask(client, instructions="Be brief.", metadata={"a": "b"}, temperature=0.5)
    assert answer.output_text == "Hello there, friend." and answer.status == "completed"
    assert answer.id == f"resp_{answer._request_id}" and answer.model == "tiny-instruct"
    (item,) = answer.output
    assert (item.type, item.role, item.status) == ("message", "assistant", "completed")
    assert answer.usage.input_tokens == len(live.instruct.requests[0].prompt)
    assert answer.usage.input_tokens_details.cached_tokens == 3
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert (answer.metadata, answer.temperature, answer.instructions) == ({"a": "b"}, 0.5, "Be brief.")
    assert answer.text.format.type == "text" and answer.tool_choice == "auto" and answer.tools == []
    assert shown(live).startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>")


@pytest.mark.parametrize("base", BASES)
def test_every_base(live: Live, base: str) -> None:
    with sdk(live, base) as client:
        first = ask(client)
        second = client.responses.retrieve(first.id)
        assert second.output_text == "Hello there, friend."
        assert client.responses.input_items.list(first.id).data[0].id
        client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(first.id)
        with pytest.raises(openai.AuthenticationError, match="Incorrect API key"):
            ask(client.with_options(api_key="sk-bad"))


def test_parameters_reach_the_engine(client: OpenAI, live: Live) -> None:
    ask(client, temperature=0.3, top_p=0.5, max_output_tokens=9, extra_body={"top_k": 7, "seed": 5})
    sampling = live.instruct.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.seed) == (0.3, 0.5, 7, 5)
    assert sampling.max_total_tokens == 9


@pytest.mark.parametrize("pieces", [1, 4])
def test_stream_equals_whole_answer(client: OpenAI, live: Live, pieces: int) -> None:
    live.instruct.say("今天天气很好 👩‍👩‍👧, oui.", pieces=pieces)
    whole = ask(client)
    with client.responses.stream(model="tiny-instruct", input="Hi") as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == whole.output_text == final.output_text == "今天天气很好 👩‍👩‍👧, oui."
    assert final.usage == whole.usage and final.status == "completed"


KINDS = {
    "reasoning": ["reasoning_text.delta", "reasoning_text.done"],
    "message": ["output_text.delta", "output_text.done"],
    "function_call": ["function_call_arguments.delta", "function_call_arguments.done"],
}


def test_the_events_of_a_stream(client: OpenAI, live: Live) -> None:
    live.thinking.say(f"Hm.\n</think>\n\nLet me look. {CALL}")
    events: list[Any] = list(
        client.responses.create(model="tiny-thinking", input="Hi", tools=[WEATHER], stream=True)
    )
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    squeezed = [kind for i, kind in enumerate(kinds) if i == 0 or kind != kinds[i - 1]]
    expected = ["created", "in_progress"]
    for kind, (delta, done) in KINDS.items():
        parts = ["content_part.added", "content_part.done"] if kind != "function_call" else []
        expected += ["output_item.added", *parts[:1], delta, done, *parts[1:], "output_item.done"]
    assert squeezed == [*expected, "completed"]
    final = events[-1].response
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert done == final.output and [item.type for item in done] == list(KINDS)
    added = [event.item.id for event in events if event.type == "response.output_item.added"]
    assert added == [item.id for item in done] and len(set(added)) == 3
    for i, item in enumerate(done):
        inner = [e for e in events if getattr(e, "output_index", None) == i and hasattr(e, "item_id")]
        assert {event.item_id for event in inner} == {item.id}
    assert {event.response.id for event in events if hasattr(event, "response")} == {final.id}
    thought, said, call = done
    assert thought.content[0].text == "Hm." and said.content[0].text == "Let me look."
    assert (call.name, call.arguments, call.status) == ("get_weather", '{"city": "Köln"}', "completed")


@pytest.mark.parametrize("stream", [True, False])
def test_thinking(client: OpenAI, live: Live, stream: bool) -> None:
    live.thinking.say("Let me think.\n</think>\n\nIt is blue.")
    asked: Any = {"model": "tiny-thinking", "input": "Hi", "reasoning": {"effort": "low"}}
    if stream:
        with client.responses.stream(**asked) as opened:
            answer: Any = opened.get_final_response()
    else:
        answer = client.responses.create(**asked)
    thought, said = answer.output
    assert (thought.type, thought.content[0].text, thought.summary) == ("reasoning", "Let me think.", [])
    assert said.content[0].text == answer.output_text == "It is blue."
    assert answer.usage.output_tokens_details.reasoning_tokens > 0 and answer.reasoning.effort == "low"


@pytest.mark.parametrize("stream", [True, False])
def test_too_short(client: OpenAI, live: Live, stream: bool) -> None:
    answer = ask(client, max_output_tokens=2, stream=stream)
    if stream:
        events = list(answer)
        assert events[-1].type == "response.incomplete"
        answer = events[-1].response
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert answer.output[-1].status == "incomplete" and answer.usage.output_tokens == 2


def test_logprobs(client: OpenAI, live: Live) -> None:
    asked = {"include": ["message.output_text.logprobs"], "top_logprobs": 4}
    told = ask(client, **asked).output[0].content[0].logprobs
    assert "".join(each.token for each in told) == "Hello there, friend."
    assert all(len(each.top_logprobs) == 4 and each.logprob == -0.5 for each in told)
    events = list(ask(client, **asked, stream=True))
    streamed = [one.token for e in events if e.type == "response.output_text.delta" for one in e.logprobs]
    assert streamed == [each.token for each in told]


@pytest.mark.parametrize("store", [True, False])
def test_tools_there_and_back(client: OpenAI, live: Live, store: bool) -> None:
    live.instruct.say("Let me look. " + CALL)
    first = ask(client, tools=[WEATHER], store=store, instructions="Use tools.")
    text, call = first.output
    assert text.content[0].text == "Let me look." and json.loads(call.arguments) == {"city": "Köln"}
    live.instruct.say("Mild.")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "12 °C"}
    if store:
        more: Any = {"previous_response_id": first.id, "input": [result]}
    else:
        more = {"input": [{"role": "user", "content": "Hi"}, *first.output, result]}
    assert ask(client, tools=[WEATHER], **more).output_text == "Mild."
    told = shown(live)
    assert "<tool_response>\n12 °C\n</tool_response>" in told and '"city": "Köln"' in told
    assert "Let me look." in told and "Weather of a city" in told and "Use tools." not in told


def test_one_call_unless_several_are_asked_for(client: OpenAI, live: Live) -> None:
    live.instruct.say(f"{CALL}\n{CALL}")
    one = ask(client, tools=[WEATHER])
    assert len(one.output) == 1 and one.parallel_tool_calls is False
    two = ask(client, tools=[WEATHER], parallel_tool_calls=True)
    assert [item.type for item in two.output] == ["function_call"] * 2 and two.parallel_tool_calls is True
    assert two.output[0].call_id != two.output[1].call_id


ALLOWED = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "get_weather"}]}


@pytest.mark.parametrize(
    ("choice", "forced", "offered"),
    [
        ("auto", False, ["get_weather", "other"]),
        ("required", True, ["get_weather", "other"]),
        ("none", False, []),
        ({"type": "function", "name": "get_weather"}, True, ["get_weather", "other"]),
        (ALLOWED, False, ["get_weather"]),
        ({**ALLOWED, "mode": "required"}, True, ["get_weather"]),
    ],
)
def test_tool_choice(client: OpenAI, live: Live, choice: Any, forced: bool, offered: list[str]) -> None:
    live.instruct.say(CALL)
    answer = ask(client, tools=[WEATHER, {**WEATHER, "name": "other"}], tool_choice=choice)
    (request,) = live.instruct.requests
    assert (request.grammar is not None) == forced
    assert [name for name in ("get_weather", "other") if name in shown(live)] == offered
    assert len(answer.tools) == 2


class City(BaseModel):
    name: str


def test_parse(client: OpenAI, live: Live) -> None:
    live.instruct.say('{"name": "Köln"}')
    answer = client.responses.parse(model="tiny-instruct", input="Hi", text_format=City)
    assert answer.output_parsed == City(name="Köln")
    assert live.instruct.requests[0].grammar is not None
    with client.responses.stream(model="tiny-instruct", input="Hi", text_format=City) as stream:
        assert stream.get_final_response().output_parsed == City(name="Köln")
    plain = ask(client, input="Give JSON", text={"format": {"type": "json_object"}})
    assert plain.text.format.type == "json_object" and json.loads(plain.output_text)


def test_failures(client: OpenAI, live: Live) -> None:
    live.instruct.fail("Hello")
    with pytest.raises(openai.InternalServerError):
        ask(client)
    events = list(ask(client, stream=True))
    assert events[-1].type == "response.failed"
    failed = events[-1].response
    assert (failed.status, failed.error.code) == ("failed", "server_error")
    assert failed.output[-1].status == "incomplete"
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(failed.id)
    live.instruct.refusal = RuntimeError("full")
    with pytest.raises(openai.InternalServerError) as caught:
        ask(client, stream=True)
    assert caught.value.status_code == 503


def test_a_silent_failure_still_begins_and_ends(http: httpx.Client, live: Live) -> None:
    """The stream was opened to keep it alive; then the engine failed before it said anything."""
    live.instruct.delay = 0.5
    live.instruct.fail("")
    answer = http.post("/v1/responses", json={"model": "tiny-instruct", "input": "Hi", "stream": True})
    names = [line.removeprefix("event: ") for line in answer.text.split("\n") if line.startswith("event")]
    assert names == ["response.created", "response.in_progress", "response.failed"]


def test_closing_a_stream_aborts(client: OpenAI, live: Live) -> None:
    live.instruct.say("and so on " * 50)
    live.instruct.delay = 0.02
    with ask(client, stream=True) as stream:
        next(iter(stream))
    live.instruct.wait_for_abort()


def test_ten_async_conversations(live: Live) -> None:
    live.instruct.delay = 0.001

    async def talk(client: AsyncOpenAI) -> str:
        first = await client.responses.create(model="tiny-instruct", input="Hi")
        async with client.responses.stream(
            model="tiny-instruct", input="And?", previous_response_id=first.id
        ) as stream:
            final = await stream.get_final_response()
        parsed = await client.responses.retrieve(final.id)
        return parsed.output_text

    async def talk_all() -> list[str]:
        async with AsyncOpenAI(base_url=live.url + "/v1", api_key=live.key, max_retries=0) as client:
            return await asyncio.gather(*[talk(client) for _ in range(10)])

    assert asyncio.run(talk_all()) == ["Hello there, friend."] * 10
    asked = live.instruct.tokenizer.decode(live.instruct.requests[-1].prompt, skip_control=False)
    assert asked.count("<|im_start|>user") == 2 and "Hello there, friend." in asked
