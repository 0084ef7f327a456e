"""The real `anthropic` SDK, and `dashscope.Client(protocol="anthropic")`, against a real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import dashscope
import httpx
import pytest
from anthropic import Anthropic, AsyncAnthropic
from dashscope.v2.errors import NotFoundError
from pydantic import BaseModel

from .conftest import Live

HI: Any = [{"role": "user", "content": "Hi"}]
WEATHER: Any = {
    "name": "get_weather",
    "description": "Weather of a city",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>'
BASES = ("/apps/anthropic", "")


def sdk(live: Live, base: str = "/apps/anthropic", **more: Any) -> Anthropic:
    return Anthropic(base_url=live.url + base, api_key=live.key, max_retries=0, timeout=10, **more)


@pytest.fixture(params=BASES)
def client(live: Live, request: pytest.FixtureRequest) -> Iterator[Anthropic]:
    with sdk(live, request.param) as client:
        yield client


def ask(client: Anthropic, **more: Any) -> Any:
    return client.messages.create(**{"model": "tiny-instruct", "max_tokens": 100, "messages": HI, **more})


def test_message(client: Anthropic, live: Live) -> None:
    live.instruct.say("Hello there, friend.", cached=3)
    answer = ask(client, system="Be brief.", metadata={"user_id": "me"})
    assert [block.model_dump(exclude_none=True) for block in answer.content] == [
        {"type": "text", "text": "Hello there, friend."}
    ]
    assert (answer.stop_reason, answer.stop_sequence, answer.role) == ("end_turn", None, "assistant")
    assert answer.id == f"msg_{answer._request_id}" and answer.model == "tiny-instruct"
    (request,) = live.instruct.requests
    assert answer.usage.cache_read_input_tokens == 3
    assert answer.usage.input_tokens + 3 == len(request.prompt)
    said = live.instruct.tokenizer.encode("Hello there, friend.")
    assert answer.usage.output_tokens == len(said) + 1
    text = live.instruct.tokenizer.decode(request.prompt, skip_control=False)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>")
    assert request.sampling.max_total_tokens == 100 and request.sampling.max_tokens is None


def test_parameters_reach_the_engine(client: Anthropic, live: Live) -> None:
    more = {"temperature": 0.3, "top_p": 0.5, "top_k": 7, "seed": 5, "min_p": 0.1}
    ask(client, extra_body=more)
    sampling = live.instruct.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.3, 0.5, 7)
    assert (sampling.seed, sampling.min_p) == (5, 0.1)


@pytest.mark.parametrize("pieces", [1, 4])
def test_stream_equals_whole_answer(client: Anthropic, live: Live, pieces: int) -> None:
    live.instruct.say("今天天气很好 👩‍👩‍👧, oui.", pieces=pieces)
    whole = ask(client)
    with client.messages.stream(model="tiny-instruct", max_tokens=100, messages=HI) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text == "今天天气很好 👩‍👩‍👧, oui."
    assert (final.stop_reason, final.usage.output_tokens) == ("end_turn", whole.usage.output_tokens)
    assert final.usage.input_tokens == whole.usage.input_tokens


def test_the_events_of_a_stream(http: httpx.Client, live: Live) -> None:
    live.thinking.say(f"Hm.\n</think>\n\nLet me look. {CALL}")
    asked = {"model": "tiny-thinking", "max_tokens": 99, "messages": HI, "tools": [WEATHER], "stream": True}
    answer = http.post("/apps/anthropic/v1/messages", json=asked)
    assert answer.headers["content-type"].startswith("text/event-stream")
    frames = [frame.split("\n") for frame in answer.text.split("\n\n") if frame]
    events = [json.loads(data.removeprefix("data: ")) for _, data in frames]
    assert [name.removeprefix("event: ") for name, _ in frames] == [event["type"] for event in events]
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["message_start", "ping"] and kinds[-2:] == ["message_delta", "message_stop"]
    assert events[0]["message"]["content"] == [] and events[0]["message"]["stop_reason"] is None
    inner = [(event["index"], event["type"].removeprefix("content_block_")) for event in events[2:-2]]
    squeezed = [each for i, each in enumerate(inner) if i == 0 or each != inner[i - 1]]
    assert squeezed == [(i, kind) for i in range(3) for kind in ("start", "delta", "stop")]
    starts = [event["content_block"]["type"] for event in events if event["type"] == "content_block_start"]
    assert starts == ["thinking", "text", "tool_use"]
    signed = [e["delta"]["signature"] for e in events if e.get("delta", {}).get("type") == "signature_delta"]
    assert signed == [events[0]["message"]["id"]]
    assert events[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}


def test_stop_sequences(client: Anthropic, live: Live) -> None:
    live.instruct.say("Hello there, friend.", pieces=2)
    answer = ask(client, stop_sequences=["zzz", " friend", "riend"])
    assert (answer.content[0].text, answer.stop_reason) == ("Hello there,", "stop_sequence")
    assert answer.stop_sequence == " friend" and len(live.instruct.aborted) == 1
    with client.messages.stream(
        model="tiny-instruct", max_tokens=100, messages=HI, stop_sequences=["there"]
    ) as stream:
        final = stream.get_final_message()
    assert (final.stop_reason, final.stop_sequence, final.content[0].text) == (
        "stop_sequence",
        "there",
        "Hello ",
    )


def test_length_and_silence(client: Anthropic, live: Live) -> None:
    assert ask(client, max_tokens=2).stop_reason == "max_tokens"
    live.instruct.say("")
    answer = ask(client)
    assert answer.content == [] and answer.stop_reason == "end_turn"
    with client.messages.stream(model="tiny-instruct", max_tokens=9, messages=HI) as stream:
        assert stream.get_final_message().content == []


@pytest.mark.parametrize("stream", [True, False])
def test_thinking(client: Anthropic, live: Live, stream: bool) -> None:
    live.thinking.say("Let me think.\n</think>\n\nIt is blue.")
    asked: Any = {
        "model": "tiny-thinking",
        "max_tokens": 100,
        "messages": HI,
        "thinking": {"type": "enabled", "budget_tokens": 50},
    }
    if stream:
        with client.messages.stream(**asked) as opened:
            answer: Any = opened.get_final_message()
    else:
        answer = client.messages.create(**asked)
    thought, said = answer.content
    assert (thought.type, thought.thinking) == ("thinking", "Let me think.") and thought.signature
    assert (said.type, said.text) == ("text", "It is blue.")
    assert answer.usage.output_tokens_details.thinking_tokens > 0
    sampling = live.thinking.requests[0].sampling
    assert (sampling.thinking_budget, sampling.max_total_tokens) == (50, 100)
    again = [*HI, {"role": "assistant", "content": answer.content}, {"role": "user", "content": "Why?"}]
    client.messages.create(**{**asked, "messages": again, "thinking": {"type": "adaptive"}})
    assert live.thinking.requests[1].sampling.thinking_budget is None


def test_tools_there_and_back(client: Anthropic, live: Live) -> None:
    live.instruct.say("Let me look. " + CALL)
    answer = ask(client, tools=[WEATHER])
    text, call = answer.content
    assert answer.stop_reason == "tool_use" and text.text == "Let me look."
    assert (call.type, call.name, call.input) == ("tool_use", "get_weather", {"city": "Köln"})
    turns = [
        *HI,
        {"role": "assistant", "content": answer.content},
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": call.id,
                    "content": [{"type": "text", "text": "12 °C"}],
                },
                {"type": "text", "text": "So?", "cache_control": {"type": "ephemeral"}},
            ],
        },
    ]
    live.instruct.say("Mild.")
    assert ask(client, tools=[WEATHER], messages=turns).content[0].text == "Mild."
    shown = live.instruct.tokenizer.decode(live.instruct.requests[1].prompt, skip_control=False)
    assert "<tool_response>\n12 °C\n</tool_response>" in shown and '"city": "Köln"' in shown
    assert shown.index("12 °C") < shown.index("So?") and "Weather of a city" in shown


def test_several_calls_unless_forbidden(client: Anthropic, live: Live) -> None:
    live.instruct.say(f"{CALL}\n{CALL}")
    assert [block.type for block in ask(client, tools=[WEATHER]).content] == ["tool_use"] * 2
    one = ask(client, tools=[WEATHER], tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert [block.type for block in one.content] == ["tool_use"]
    with client.messages.stream(model="tiny-instruct", max_tokens=99, messages=HI, tools=[WEATHER]) as stream:
        final: Any = stream.get_final_message()
    assert [block.input for block in final.content] == [{"city": "Köln"}] * 2


@pytest.mark.parametrize(
    ("choice", "forced"),
    [
        ({"type": "auto"}, False),
        ({"type": "any"}, True),
        ({"type": "tool", "name": "get_weather"}, True),
        ({"type": "none"}, False),
    ],
)
def test_tool_choice(client: Anthropic, live: Live, choice: Any, forced: bool) -> None:
    live.instruct.say(CALL)
    ask(client, tools=[WEATHER], tool_choice=choice)
    (request,) = live.instruct.requests
    assert (request.grammar is not None) == forced
    shown = live.instruct.tokenizer.decode(request.prompt, skip_control=False)
    assert ("get_weather" in shown) == (choice["type"] != "none")


class City(BaseModel):
    name: str


def test_parsed_output(client: Anthropic, live: Live) -> None:
    live.instruct.say('{"name": "Köln"}')
    answer = client.messages.parse(model="tiny-instruct", max_tokens=99, messages=HI, output_format=City)
    assert answer.parsed_output == City(name="Köln")
    assert live.instruct.requests[0].grammar is not None


def test_the_answer_can_be_begun(client: Anthropic, live: Live) -> None:
    turns = [*HI, {"role": "assistant", "content": "Once upon"}]
    assert ask(client, messages=turns).content[0].text == "Hello there, friend."
    shown = live.instruct.tokenizer.decode(live.instruct.requests[0].prompt, skip_control=False)
    assert shown.endswith("<|im_start|>assistant\nOnce upon")
    with pytest.raises(anthropic.BadRequestError, match="a model that thinks cannot go on"):
        ask(client, messages=turns, model="tiny-thinking")


def test_count_tokens(client: Anthropic, live: Live) -> None:
    asked: Any = {"model": "tiny-instruct", "messages": HI, "tools": [WEATHER], "system": "Be brief."}
    count = client.messages.count_tokens(**asked).input_tokens
    ask(client, **asked)
    assert count == len(live.instruct.requests[0].prompt)
    assert client.messages.count_tokens(model="tiny-instruct", messages=HI).input_tokens < count


def test_models(live: Live) -> None:
    with sdk(live) as client:
        names = [model.id for model in client.models.list()]
        assert "tiny-instruct" in names and "qwen3-next-80b-a3b-thinking" in names
        assert client.models.retrieve("tiny-base").display_name == "tiny-base"
        with pytest.raises(anthropic.NotFoundError):
            client.models.retrieve("gpt-9")


def test_closing_a_stream_aborts(live: Live) -> None:
    live.instruct.say("and so on " * 50)
    live.instruct.delay = 0.02
    with sdk(live) as client:
        stream = client.messages.create(model="tiny-instruct", max_tokens=500, messages=HI, stream=True)
        next(iter(stream))
        stream.close()
    live.instruct.wait_for_abort()


def test_ten_async_streams(live: Live) -> None:
    live.instruct.delay = 0.001

    async def one(client: AsyncAnthropic) -> str:
        async with client.messages.stream(model="tiny-instruct", max_tokens=99, messages=HI) as stream:
            return await stream.get_final_text()

    async def many() -> list[str]:
        async with AsyncAnthropic(base_url=live.url, api_key=live.key, max_retries=0) as client:
            return await asyncio.gather(*[one(client) for _ in range(10)])

    assert asyncio.run(many()) == ["Hello there, friend."] * 10


def dashscope_client(live: Live) -> Any:
    return dashscope.Client(
        api_key=live.key, protocol="anthropic", base_url=live.url + "/apps/anthropic", max_retries=0
    )


def test_dashscope(live: Live) -> None:
    live.thinking.say("Hm.\n</think>\n\nLet me look. " + CALL)
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": WEATHER["input_schema"]}}
    with dashscope_client(live) as client:
        asked = {"model": "tiny-thinking", "messages": HI, "tools": [tool]}
        answer = client.chat.completions.create(**asked)
        (choice,) = answer.choices
        assert choice.finish_reason == "tool_calls" and choice.message.content == "Let me look."
        assert choice.message.reasoning_content == "Hm."
        assert choice.message.tool_calls[0].function.arguments == '{"city": "Köln"}'
        assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
        content = reasoning = ""
        finish, calls = None, None
        for chunk in client.chat.completions.create(**asked, stream=True):
            for each in chunk.choices:
                content += each.delta.content or ""
                reasoning += getattr(each.delta, "reasoning_content", None) or ""
                calls = each.delta.tool_calls or calls
                finish = each.finish_reason or finish
        assert (reasoning, content, finish) == ("Hm.", "Let me look.", "tool_calls")
        assert calls is not None and calls[0].function.arguments == '{"city": "Köln"}'
        with pytest.raises(NotFoundError):
            client.chat.completions.create(model="gpt-9", messages=HI)


def test_dashscope_async(live: Live) -> None:
    async def ask_all() -> list[str]:
        async with dashscope.AsyncClient(
            api_key=live.key, protocol="anthropic", base_url=live.url + "/apps/anthropic"
        ) as client:
            answer: Any = await client.chat.completions.create(
                model="tiny-instruct", messages=HI, stop="friend"
            )
            chunks = await client.chat.completions.create(model="tiny-instruct", messages=HI, stream=True)
            pieces = [each.delta.content or "" async for chunk in chunks for each in chunk.choices]
            return [answer.choices[0].message.content, "".join(pieces)]

    assert asyncio.run(ask_all()) == ["Hello there, ", "Hello there, friend."]


def test_long_silence_and_an_empty_beginning(live: Live) -> None:
    """Comments that keep a stream alive do not disturb the SDK; an assistant may have said nothing yet."""
    live.instruct.delay = 0.7
    with sdk(live) as client:
        turns: Any = [*HI, {"role": "assistant", "content": ""}]
        with client.messages.stream(model="tiny-instruct", max_tokens=2, messages=turns) as stream:
            assert stream.get_final_message().stop_reason == "max_tokens"
