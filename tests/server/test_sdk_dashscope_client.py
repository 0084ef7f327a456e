"""The second surface of the real `dashscope` SDK, `Client` and `AsyncClient`, against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import dashscope
import pytest

from .conftest import Live
from .test_sdk_openai import CALL, WEATHER

errors = pytest.importorskip("dashscope.v2.errors")  # the first generation has no such surface
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture
def client(live: Live) -> Iterator[Any]:
    client = dashscope.Client(api_key=live.key, base_url=live.url + "/api/v1", max_retries=0)
    yield client
    client.close()


def test_client_2x(client: Any, live: Live) -> None:
    answer = client.chat.completions.create(model="tiny-instruct", messages=HI)
    assert answer.choices[0].message.content == "Hello there, friend." and answer.request_id
    pieces = client.chat.completions.create(model="tiny-instruct", messages=HI, stream=True)
    assert "".join(piece.delta.content or "" for piece in pieces) == "Hello there, friend."
    assert client.models.get("tiny-base").model == "tiny-base"
    assert client.models.list().total_count == 6
    live.thinking.say("Hm.\n</think>\n\nYes.")
    thought = client.chat.completions.create(model="tiny-thinking", messages=HI)
    assert thought.choices[0].message.reasoning_content == "Hm."
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    assert client.chat.completions.create(model="tiny-instruct", messages=parts).choices


def test_client_2x_openai_protocol(live: Live) -> None:
    with dashscope.Client(
        api_key=live.key, base_url=live.url + "/compatible-mode/v1", protocol="openai", max_retries=0
    ) as client:
        pieces = list(client.chat.completions.create(model="tiny-instruct", messages=HI, stream=True))
    text = "".join(piece.delta.content or "" for piece in pieces if piece.delta)
    assert text == "Hello there, friend." and pieces[-1].usage is not None


def test_errors_of_client_2x(client: Any, live: Live) -> None:
    with pytest.raises(errors.NotFoundError):
        client.chat.completions.create(model="gpt-9", messages=HI)
    with pytest.raises(errors.BadRequestError, match="Temperature"):
        client.chat.completions.create(model="tiny-instruct", messages=HI, temperature=3)
    with pytest.raises(errors.AuthenticationError):
        client.chat.completions.create(model="tiny-instruct", messages=HI, api_key="sk-bad")
    live.instruct.refusal = RuntimeError("full")
    with pytest.raises(errors.ServiceUnavailableError):
        client.chat.completions.create(model="tiny-instruct", messages=HI)
    live.instruct.refusal = None
    live.instruct.fail("Hello there")
    with pytest.raises(errors.InternalServerError):
        list(client.chat.completions.create(model="tiny-instruct", messages=HI, stream=True))


def test_snapshots_are_merged_by_the_sdk(client: Any, live: Live) -> None:
    live.instruct.say(f"Let me look.\n{CALL}")
    for model in ("tiny-instruct", "qwen3-next-80b-a3b-instruct"):
        stream = client.chat.completions.create(
            model=model, messages=HI, tools=WEATHER, stream=True, incremental_output=False
        )
        chunks = list(stream)
        assert chunks[-1].choices[0].delta.content == "Let me look."
        (call,) = chunks[-1].choices[0].delta.tool_calls
        assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Köln"}')
    final = client.chat.completions.create(
        model="tiny-instruct", messages=HI, tools=WEATHER, stream=True
    ).get_final_message()
    assert final.choices[0].message.content == "Let me look." and final.headers["x-request-id"]


def test_the_tokenizer(client: Any, live: Live) -> None:
    counted = client.tokenization.count(model="tiny-instruct", prompt="the weather")
    assert counted.token_ids == live.instruct.tokenizer.encode("the weather")
    assert counted.input_tokens == len(counted.token_ids)


def test_the_async_client(live: Live) -> None:
    async def work() -> tuple[Any, Any, str]:
        async with dashscope.AsyncClient(api_key=live.key, base_url=live.url + "/api/v1") as client:
            models = await client.models.list()
            counted = await client.tokenization.count(model="tiny-instruct", prompt="the weather")
            stream = await client.chat.completions.create(model="tiny-instruct", messages=HI, stream=True)
            return models, counted, "".join([piece async for piece in stream.text_stream])

    models, counted, text = asyncio.run(work())
    assert models.total_count == 6 and counted.input_tokens > 0 and text == "Hello there, friend."


def test_the_shortcut(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    from dashscope.v2 import _quickstart

    monkeypatch.setenv("DASHSCOPE_API_KEY", live.key)
    monkeypatch.setenv("DASHSCOPE_BASE_URL", live.url + "/api/v1")
    monkeypatch.setattr(_quickstart, "_client", None)
    assert dashscope.chat("tiny-instruct", "Hi").output_text == "Hello there, friend."
    _quickstart._client.close()


def test_a_full_server_is_asked_again(live: Live) -> None:
    """The SDK waits as long as the server says, and does not repeat what cannot succeed."""
    live.instruct.refusal = RuntimeError("full")
    with (
        dashscope.Client(api_key=live.key, base_url=live.url + "/api/v1", max_retries=1) as client,
        pytest.raises(errors.ServiceUnavailableError) as caught,
    ):
        client.chat.completions.create(model="tiny-instruct", messages=HI)
    assert int(caught.value.headers["retry-after"]) >= 1
