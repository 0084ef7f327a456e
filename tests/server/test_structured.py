"""Structured output and forced tool calls on the wire: an engine that obeys the request's grammar, but likes
nothing in particular, and the real SDKs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

import dashscope
import httpx
import numpy as np
import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel

from qnext.engine.request import Output, Request

from .conftest import Live
from .fake_engine import FakeEngine, outputs
from .test_app import CHAT, COMPLETIONS, NATIVE, SSE, chat, frames, native
from .test_sdk_openai import WEATHER, client

__all__ = ["client"]

HI: Any = [{"role": "user", "content": "Answer in JSON, please."}]
ROOM = 120


class Place(BaseModel):
    city: str
    days: int | None
    kind: Literal["town", "village"]


class Trip(BaseModel):
    places: list[Place]
    name: str


SCHEMA = {"type": "json_schema", "json_schema": {"name": "trip", "schema": Trip.model_json_schema()}}


def obey(engine: FakeEngine, thought: str = "") -> None:
    """Answer with what the grammar of a request allows, chosen by its seed."""

    def script(request: Request) -> Sequence[Output]:
        rng, asked = np.random.default_rng(request.sampling.seed), request.grammar
        ids = engine.tokenizer.encode_trusted(thought)
        if asked is None:
            return outputs(request, [*ids, request.eos[0]])
        room, matcher = request.sampling.max_tokens or ROOM, asked.start()
        while room and (not ids or ids[-1] not in request.eos):
            token = int(rng.choice(np.flatnonzero(matcher.allowed(room))))
            matcher.accept(token)
            ids.append(token)
            room -= 1
        return outputs(request, ids, pieces=3)

    engine.script = script


@pytest.fixture(autouse=True)
def obedient(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    for engine in live.engines.values():
        obey(engine)
    obey(live.thinking, "Well, {.\n</think>")
    monkeypatch.setattr(dashscope, "base_http_api_url", live.url + "/api/v1")
    monkeypatch.setattr(dashscope, "api_key", live.key)


@pytest.mark.parametrize("model", ["tiny-instruct", "tiny-thinking"])
@pytest.mark.parametrize("max_tokens", [60, 500])
def test_pydantic_models_are_answered(client: OpenAI, model: str, max_tokens: int) -> None:
    for seed in range(3):
        answer = client.chat.completions.parse(
            model=model, messages=HI, response_format=Trip, max_tokens=max_tokens, seed=seed
        )
        assert answer.choices[0].finish_reason == "stop"
        assert isinstance(answer.choices[0].message.parsed, Trip)
        if model == "tiny-thinking":
            assert answer.choices[0].message.reasoning_content == "Well, {."  # type: ignore[attr-defined]


def test_every_choice_has_its_own_matcher(client: OpenAI, live: Live) -> None:
    asked: Any = {"model": "tiny-instruct", "messages": HI, "response_format": SCHEMA, "n": 3, "seed": 1}
    texts = [choice.message.content or "" for choice in client.chat.completions.create(**asked).choices]
    assert len(set(texts)) == 3 and all(Trip.model_validate_json(text) for text in texts)
    first, second, _third = live.instruct.requests
    assert first.grammar is second.grammar is not None


@pytest.mark.parametrize("stream", [False, True])
def test_dashscope_asks_the_same(stream: bool) -> None:
    asked: Any = {"messages": HI, "result_format": "message", "response_format": SCHEMA, "seed": 4}
    if stream:
        parts = dashscope.Generation.call("tiny-instruct", stream=True, incremental_output=True, **asked)
        text = "".join(part.output.choices[0].message.content for part in parts)
    else:
        text = dashscope.Generation.call("tiny-instruct", **asked).output.choices[0].message.content
    Trip.model_validate_json(text)


@pytest.mark.parametrize("stream", [False, True])
def test_structured_outputs_as_in_vllm(http: httpx.Client, stream: bool) -> None:
    for wish, check in (
        ({"choice": ["yes", "no"]}, lambda text: text in ("yes", "no")),
        ({"regex": "[0-9]{3}-[a-c]+"}, lambda text: text[:3].isdigit() and set(text[4:]) <= set("abc")),
        ({"json": {"enum": [1, "é"]}}, lambda text: json.loads(text) in (1, "é")),
    ):
        body = chat(structured_outputs=wish, stream=stream)
        answer = http.post(CHAT, json=body)
        if stream:
            text = "".join(f["choices"][0]["delta"].get("content") or "" for f in frames(answer.text))
        else:
            text = answer.json()["choices"][0]["message"]["content"]
        assert check(text), text
        raw = http.post(COMPLETIONS, json={"model": "tiny-base", "prompt": "x", "structured_outputs": wish})
        assert check(raw.json()["choices"][0]["text"])


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
@pytest.mark.parametrize("model", ["tiny-instruct", "tiny-thinking"])
def test_forced_calls(client: OpenAI, choice: Any, model: str) -> None:
    asked: Any = {"model": model, "messages": HI, "tools": WEATHER, "tool_choice": choice, "max_tokens": 60}
    for parallel in (False, True):
        answer = client.chat.completions.create(**asked, parallel_tool_calls=parallel)
        calls = answer.choices[0].message.tool_calls or []
        assert calls and answer.choices[0].finish_reason == "tool_calls"
        assert len(calls) == 1 or (parallel and choice == "required")
        for call in calls:
            assert call.function.name == "get_weather" and isinstance(
                json.loads(call.function.arguments), dict
            )
        assert not answer.choices[0].message.content
    response = dashscope.Generation.call(**asked, result_format="message")
    message = response.output.choices[0].message
    assert message.tool_calls[0]["function"]["name"] == "get_weather"
    assert response.output.choices[0].finish_reason == "tool_calls"


def test_tools_or_json_as_the_model_likes(client: OpenAI) -> None:
    seen = set()
    for seed in range(12):
        answer = client.chat.completions.create(
            model="tiny-instruct",
            messages=HI,
            tools=WEATHER,
            response_format=SCHEMA,  # type: ignore[call-overload]
            seed=seed,
        )
        message = answer.choices[0].message
        seen.add(bool(message.tool_calls))
        if not message.tool_calls:
            Trip.model_validate_json(message.content or "")
    assert seen == {False, True}


def test_a_partial_message_goes_on_in_form(client: OpenAI) -> None:
    begun = {"role": "assistant", "content": '{"name": "x', "partial": True}
    answer = client.chat.completions.create(
        model="tiny-instruct", messages=[*HI, begun], response_format={"type": "json_object"}
    )
    assert json.loads('{"name": "x' + (answer.choices[0].message.content or ""))["name"].startswith("x")
    wrong = {**begun, "content": "Here is the JSON:"}
    with pytest.raises(openai.BadRequestError, match="partial message does not begin"):
        client.chat.completions.create(
            model="tiny-instruct", messages=[*HI, wrong], response_format={"type": "json_object"}
        )


NOT = {"type": "object", "properties": {"a": {"not": {}}}}


@pytest.mark.parametrize(
    ("more", "param", "words"),
    [
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": NOT}}},
            "response_format",
            "response_format: the schema uses what is not supported: not",
        ),
        (
            {
                "tools": [{"type": "function", "function": {"name": "f", "parameters": NOT}}],
                "tool_choice": "required",
            },
            "tools[0].function.parameters",
            "tools[0].function.parameters: the schema uses what is not supported: not",
        ),
        ({"structured_outputs": {"regex": "(a"}}, "structured_outputs", "structured_outputs: unclosed group"),
    ],
)
def test_what_cannot_be_obeyed_is_a_bad_request(
    http: httpx.Client, more: dict[str, Any], param: str, words: str
) -> None:
    answer = http.post(CHAT, json=chat(stream=True, **more))
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["code"] == "invalid_parameter_error"
    assert error["param"] == param and error["message"] == words
    natively = http.post(NATIVE, json=native(**more), headers=SSE)
    assert natively.status_code == 400
    assert natively.json()["code"] == "InvalidParameter" and natively.json()["message"] == words
