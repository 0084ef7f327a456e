"""The real `openai` SDK against a real server."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from .conftest import Live

PARSERS = ("h11", "httptools")
HI: Any = [{"role": "user", "content": "Hi"}]
WEATHER: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>'


@pytest.fixture
def client(live: Live) -> Iterator[OpenAI]:
    base = live.url + "/compatible-mode/v1"
    with OpenAI(base_url=base, api_key=live.key, max_retries=0, timeout=10) as client:
        yield client


def test_chat(client: OpenAI, live: Live) -> None:
    answer = client.chat.completions.create(model="tiny-instruct", messages=HI, user="me", store=False)
    assert answer.choices[0].message.content == "Hello there, friend."
    assert answer.choices[0].finish_reason == "stop" and answer.choices[0].logprobs is None
    assert answer.id == f"chatcmpl-{answer._request_id}"
    assert answer.usage is not None and answer.usage.prompt_tokens == len(live.instruct.requests[0].prompt)
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_stream_equals_whole_answer(client: OpenAI, live: Live) -> None:
    live.instruct.say("今天天气很好 👩‍👩‍👧, oui.", pieces=3)
    whole = client.chat.completions.create(model="tiny-instruct", messages=HI, seed=1)
    chunks = list(client.chat.completions.create(model="tiny-instruct", messages=HI, stream=True, seed=1))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content == "今天天气很好 👩‍👩‍👧, oui."
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].choices[0].finish_reason == "stop"
    assert all("\ufffd" not in (chunk.choices[0].delta.content or "") for chunk in chunks)
    assert all(chunk.usage is None for chunk in chunks)


def test_parameters_reach_the_engine(client: OpenAI, live: Live) -> None:
    client.chat.completions.create(
        model="tiny-instruct",
        messages=HI,
        temperature=0.3,
        top_p=0.5,
        presence_penalty=1.5,
        frequency_penalty=-1,
        seed=7,
        max_tokens=9,
        max_completion_tokens=11,
        logprobs=True,
        top_logprobs=2,
        extra_body={"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "enable_thinking": True},
    )
    sampling = live.instruct.requests[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.3, 0.5, 5, 0.1)
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1.5, -1)
    assert (sampling.repetition_penalty, sampling.seed, sampling.logprobs) == (1.1, 7, 2)
    assert (sampling.max_tokens, sampling.max_total_tokens) == (9, 11)


def test_max_tokens_and_length(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny-instruct", messages=HI, max_tokens=2)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 2


@pytest.mark.parametrize("stop", ["there", ["zzz", " there", "re, f"]])
@pytest.mark.parametrize("stream", [True, False])
def test_stop(client: OpenAI, live: Live, stop: Any, stream: bool) -> None:
    live.instruct.say("Hello there, friend.", pieces=2)
    answer = client.chat.completions.create(model="tiny-instruct", messages=HI, stop=stop, stream=stream)
    if isinstance(answer, openai.Stream):
        chunks = list(answer)
        text, reason = (
            "".join(c.choices[0].delta.content or "" for c in chunks),
            chunks[-1].choices[0].finish_reason,
        )
    else:
        text, reason = str(answer.choices[0].message.content), answer.choices[0].finish_reason
    assert (text, reason) == (("Hello " if stop == "there" else "Hello"), "stop")
    assert len(live.instruct.aborted) == 1


def test_n_answers(client: OpenAI, live: Live) -> None:
    live.instruct.say("first", "second", "third")
    answer = client.chat.completions.create(model="tiny-instruct", messages=HI, n=3, seed=40)
    assert [(c.index, c.message.content) for c in answer.choices] == [
        (0, "first"),
        (1, "second"),
        (2, "third"),
    ]
    assert sorted(r.sampling.seed or 0 for r in live.instruct.requests) == [40, 41, 42]
    alone = [len(live.instruct.tokenizer.encode(t)) + 1 for t in ("first", "second", "third")]
    assert answer.usage is not None and answer.usage.completion_tokens == sum(alone)
    texts = ["", "", ""]
    ends = []
    for chunk in client.chat.completions.create(
        model="tiny-instruct", messages=HI, n=3, seed=40, stream=True, stream_options={"include_usage": True}
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends += [choice.index] if choice.finish_reason else []
    assert texts == ["first", "second", "third"] and sorted(ends) == [0, 1, 2]
    assert chunk.usage == answer.usage


def test_logprobs(client: OpenAI, live: Live) -> None:
    answer = client.chat.completions.create(model="tiny-instruct", messages=HI, logprobs=True, top_logprobs=5)
    told = answer.choices[0].logprobs
    assert told is not None and told.content is not None
    assert "".join(token.token for token in told.content) == "Hello there, friend."
    assert all(len(token.top_logprobs) == 5 and token.logprob == -0.5 for token in told.content)
    assert told.content[0].top_logprobs[-1].logprob == -9999
    assert bytes(told.content[0].bytes or []).decode() == told.content[0].token
    streamed = [
        token
        for chunk in client.chat.completions.create(
            model="tiny-instruct", messages=HI, logprobs=True, top_logprobs=5, stream=True
        )
        if chunk.choices[0].logprobs is not None
        for token in chunk.choices[0].logprobs.content or []
    ]
    assert [t.token for t in streamed] == [t.token for t in told.content]
    bare = client.chat.completions.create(model="tiny-instruct", messages=HI, logprobs=True)
    assert bare.choices[0].logprobs is not None and bare.choices[0].logprobs.content is not None
    assert bare.choices[0].logprobs.content[0].top_logprobs == []


def test_thinking(client: OpenAI, live: Live) -> None:
    live.thinking.say("Let me think.\n</think>\n\nIt is blue.")
    answer = client.chat.completions.create(model="tiny-thinking", messages=HI)
    message = answer.choices[0].message
    assert message.content == "It is blue."
    assert message.model_extra == {"reasoning_content": "Let me think."}
    assert answer.usage is not None and answer.usage.completion_tokens_details is not None
    thought = live.thinking.tokenizer.encode("Let me think.\n")
    assert answer.usage.completion_tokens_details.reasoning_tokens == len(thought)
    reasoning = content = ""
    for chunk in client.chat.completions.create(model="tiny-thinking", messages=HI, stream=True):
        delta = chunk.choices[0].delta
        piece = getattr(delta, "reasoning_content", None)
        assert not (piece and delta.content)
        reasoning += piece or ""
        content += delta.content or ""
    assert (reasoning, content) == ("Let me think.", "It is blue.")


def test_thinking_budget_reaches_the_engine(client: OpenAI, live: Live) -> None:
    live.thinking.say("Hm.\n</think>\n\nYes.")
    client.chat.completions.create(model="tiny-thinking", messages=HI, extra_body={"thinking_budget": 5})
    request = live.thinking.requests[0]
    assert request.sampling.thinking_budget == 5 and request.reasoning is not None
    assert request.reasoning.end in request.reasoning.close
    assert live.thinking.tokenizer.decode([request.reasoning.end], skip_control=False) == "</think>"


def test_unclosed_thinking(client: OpenAI, live: Live) -> None:
    live.thinking.say("I never stop", end=False)
    answer = client.chat.completions.create(model="tiny-thinking", messages=HI)
    assert answer.choices[0].finish_reason == "length" and answer.choices[0].message.content == ""


def test_partial_mode(client: OpenAI, live: Live) -> None:
    turns: Any = [*HI, {"role": "assistant", "content": "Once upon", "partial": True}]
    answer = client.chat.completions.create(model="tiny-instruct", messages=turns)
    assert answer.choices[0].message.content == "Hello there, friend."
    assert live.instruct.tokenizer.decode(live.instruct.requests[0].prompt).endswith("assistant\nOnce upon")
    with pytest.raises(openai.BadRequestError, match="partial"):
        client.chat.completions.create(model="tiny-thinking", messages=turns)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"temperature": 2}, "Temperature should be in [0.0, 2.0)"),
        ({"n": 5}, "Range of n should be [1, 4]"),
        ({"messages": []}, "[] is too short - 'messages'"),
        ({"tool_choice": "required"}, 'tool_choice is "required", but no tools are given'),
        (
            {"response_format": {"type": "json_object"}},
            "'messages' must contain the word 'json' in some form",
        ),
        ({"model": "tiny-base"}, "no chat template"),
        ({"model": "tiny-thinking", "extra_body": {"enable_thinking": False}}, "restricted to True"),
    ],
)
def test_bad_requests(client: OpenAI, more: Any, message: str) -> None:
    asked: Any = {"model": "tiny-instruct", "messages": HI, **more}
    with pytest.raises(openai.BadRequestError, match=re.escape(message)) as caught:
        client.chat.completions.create(**asked, stream=True)
    assert caught.value.code == "invalid_parameter_error" and caught.value.type == "invalid_request_error"


def test_error_classes(client: OpenAI, live: Live) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(model="gpt-9", messages=HI)
    with pytest.raises(openai.AuthenticationError, match="Incorrect API key provided"):
        client.with_options(api_key="sk-bad").models.list()
    live.instruct.refusal = RuntimeError("full")
    with pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="tiny-instruct", messages=HI)
    assert caught.value.status_code == 503
    live.instruct.refusal = None
    live.instruct.fail("Hello")
    with pytest.raises(openai.APIError, match="internal error"):
        list(client.chat.completions.create(model="tiny-instruct", messages=HI, stream=True))


def test_closing_a_stream_aborts(client: OpenAI, live: Live) -> None:
    live.instruct.say("and so on " * 50)
    live.instruct.delay = 0.02
    with client.chat.completions.create(model="tiny-instruct", messages=HI, stream=True) as stream:
        next(iter(stream))
    live.instruct.wait_for_abort()


def test_models(client: OpenAI) -> None:
    names = [model.id for model in client.models.list()]
    assert "tiny-instruct" in names and "qwen3-next-80b-a3b-thinking" in names
    assert client.models.retrieve("tiny-base").owned_by == "qnext"


def test_completions(client: OpenAI, live: Live) -> None:
    answer = client.completions.create(model="tiny-base", prompt="Once", max_tokens=3, echo=True)
    tokenizer = live.base.tokenizer
    said = tokenizer.decode(tokenizer.encode("Hello there, friend.")[:3])
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("Once" + said, "length")
    assert live.base.requests[0].prompt == tuple(live.base.tokenizer.encode("Once"))
    assert answer.id.startswith("cmpl-") and answer.object == "text_completion"
    ids = live.base.tokenizer.encode("Twice")
    client.completions.create(model="tiny-instruct", prompt=[ids, ids[:1]])
    assert [r.prompt for r in live.instruct.requests] == [tuple(ids), tuple(ids[:1])]


def test_completions_of_several_prompts(client: OpenAI, live: Live) -> None:
    live.base.say("A", "B")
    asked: Any = {"model": "tiny-base", "prompt": ["x", "y z"], "n": 2, "seed": 3, "logprobs": 1}
    answer = client.completions.create(**asked)
    assert [(c.index, c.text) for c in answer.choices] == [(0, "A"), (1, "B"), (2, "A"), (3, "B")]
    told = answer.choices[0].logprobs
    assert told is not None and told.tokens == ["A"] and told.text_offset == [0]
    assert told.token_logprobs == [-0.5] and told.top_logprobs == [{"A": -0.5}]
    prompts = sum(len(live.base.tokenizer.encode(p)) for p in ("x", "y z"))
    assert answer.usage is not None and answer.usage.prompt_tokens == prompts
    texts = [""] * 4
    for chunk in client.completions.create(**asked, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["A", "B", "A", "B"]


def test_raw_completion_of_a_thinking_model(client: OpenAI, live: Live) -> None:
    live.thinking.say("plain <tool_call>{}")
    answer = client.completions.create(model="tiny-thinking", prompt="x", temperature=0)
    assert answer.choices[0].text == "plain <tool_call>{}" and live.thinking.requests[0].reasoning is None


def test_twenty_async_streams(live: Live) -> None:
    live.instruct.delay = 0.001

    async def ask(client: openai.AsyncOpenAI) -> str:
        stream = await client.chat.completions.create(model="tiny-instruct", messages=HI, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=live.url + "/v1", api_key=live.key) as client:
            return await asyncio.gather(*[ask(client) for _ in range(20)])

    assert asyncio.run(ask_all()) == ["Hello there, friend."] * 20
