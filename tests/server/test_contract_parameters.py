"""The contract's table of parameters: what each does and what its absence means, by every way of the SDKs."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from .conftest import CONTEXT, Live
from .ways import HI, WAYS, ask

pytestmark = pytest.mark.parametrize("running", ["httptools"], indirect=True)
INSTRUCT, THINKING = "qwen3-next-80b-a3b-instruct", "qwen3-next-80b-a3b-thinking"
WHOLE = "Hello there, friend."

# What is sent, and what the engine must then be asked for.
SAMPLING: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0.0, "max_tokens": None, "logprobs": None}),
    ({}, {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}),
    ({"temperature": 0}, {"temperature": 0}),
    ({"temperature": 1.99}, {"temperature": 1.99}),
    ({"top_p": 1}, {"top_p": 1}),
    ({"top_k": 7}, {"top_k": 7}),
    ({"top_k": 100}, {"top_k": 100}),
    ({"top_k": 101}, {"top_k": 0}),
    ({"top_k": 0}, {"top_k": 0}),
    ({"min_p": 0.05}, {"min_p": 0.05}),
    ({"repetition_penalty": 1.1}, {"repetition_penalty": 1.1}),
    ({"presence_penalty": -2}, {"presence_penalty": -2}),
    ({"presence_penalty": 1.5}, {"presence_penalty": 1.5}),
    ({"frequency_penalty": 2}, {"frequency_penalty": 2}),
    ({"seed": 0}, {"seed": 0}),
    ({"seed": 2**63 - 1}, {"seed": 2**63 - 1}),
    ({"max_tokens": 1}, {"max_tokens": 1}),
    ({"max_tokens": 32_768}, {"max_tokens": 32_768}),
    ({"max_completion_tokens": 9}, {"max_total_tokens": 9}),
    ({"logprobs": True}, {"logprobs": 0}),
    ({"logprobs": True, "top_logprobs": 5}, {"logprobs": 5}),
    ({"logprobs": False}, {"logprobs": None}),
]
IGNORED: list[dict[str, Any]] = [
    {"enable_thinking": True},
    {"enable_thinking": False},
    {"thinking_budget": 7},
    {"enable_search": True, "search_options": {"forced_search": True}},
    {"preserve_thinking": True},
    {"reasoning_effort": "high"},
    {"max_input_tokens": 100, "vl_high_resolution_images": True, "skill": "ppt"},
    {"translation_options": {"source_lang": "auto"}},
    {"enable_code_interpreter": True},
    {"max_context_length": 131_072},
    {"response_format": {"type": "text"}},
    {"tool_stream": True},
    {"user": "me", "store": False, "metadata": {"a": "b"}, "logit_bias": {}, "service_tier": "auto"},
    {"prediction": None, "verbosity": "low", "prompt_cache_key": "k", "safety_identifier": "s"},
    {"made_up_by_a_tutorial": [1, {"x": None}]},
]


@pytest.mark.parametrize("way", WAYS)
def test_what_the_engine_is_asked_for(way: str, live: Live) -> None:
    for params, expected in SAMPLING:
        told = ask(way, live, INSTRUCT, **params)
        assert told.status == 200, (params, told)
        sampling = live.instruct.requests[-1].sampling
        assert {name: getattr(sampling, name) for name in expected} == expected, params


@pytest.mark.parametrize("way", WAYS)
def test_what_means_nothing_here_is_no_error(way: str, live: Live) -> None:
    for params in IGNORED:
        told = ask(way, live, INSTRUCT, **params)
        assert (told.status, told.text, told.finish) == (200, WHOLE, "stop"), (params, told)
        assert live.instruct.requests[-1].sampling.temperature == 0.7


@pytest.mark.parametrize("way", WAYS)
def test_defaults_of_the_thinking_model(way: str, live: Live) -> None:
    live.thinking.say("Hm.\n</think>\n\nYes.")
    told = ask(way, live, THINKING)
    assert (told.reasoning, told.text, told.finish) == ("Hm.", "Yes.", "stop")
    sampling = live.thinking.requests[0].sampling
    assert sampling.temperature == 0.7  # which this checkpoint recommends; of the others it says nothing
    assert (sampling.top_p, sampling.top_k) == (0.95, 20)
    assert sampling.thinking_budget is None


@pytest.mark.parametrize("way", WAYS)
def test_seeds_differ_unless_given(way: str, live: Live) -> None:
    for _ in range(3):
        ask(way, live, INSTRUCT)
    assert len({request.sampling.seed for request in live.instruct.requests}) == 3


@pytest.mark.parametrize("way", WAYS)
def test_stops_and_lengths(way: str, live: Live) -> None:
    ids = live.instruct.tokenizer.encode(WHOLE)
    decode = live.instruct.tokenizer.decode
    stops: list[tuple[dict[str, Any], str, str]] = [
        ({"stop": "friend"}, "Hello there, ", "stop"),
        ({"stop": ["x", "there"]}, "Hello ", "stop"),
        ({"stop": []}, WHOLE, "stop"),
        ({"stop": [ids[2]]}, decode(ids[:2]), "stop"),
        ({"stop": [ids[2:4]]}, decode(ids[:2]), "stop"),
        ({"max_tokens": 3}, decode(ids[:3]), "length"),
        ({"max_completion_tokens": 4}, decode(ids[:4]), "length"),
    ]
    for params, text, finish in stops:
        told = ask(way, live, INSTRUCT, **params)
        assert (told.text, told.finish) == (text, finish), params
        assert told.total == told.input + told.output


@pytest.mark.parametrize("way", WAYS)
def test_usage_is_that_of_the_engine(way: str, live: Live) -> None:
    told = ask(way, live, INSTRUCT)
    request = live.instruct.requests[0]
    assert told.input == len(request.prompt) and told.output == len(request_ids(live)) + 1
    assert told.request_id.removeprefix("chatcmpl-").count("-") == 4


def request_ids(live: Live) -> list[int]:
    return live.instruct.tokenizer.encode(WHOLE)


def native(live: Live, params: Any, **headers: str) -> httpx.Response:
    """Bodies and headers that no SDK sends."""
    body = {"model": INSTRUCT, "input": {"messages": HI}, "parameters": params}
    url = live.url + "/api/v1/services/aigc/text-generation/generation"
    return httpx.post(url, json=body, headers=live.auth | headers)


def test_null_is_absent_but_for_top_k(live: Live) -> None:
    names = ["temperature", "top_p", "seed", "stop", "n", "tools", "result_format", "incremental_output"]
    assert native(live, dict.fromkeys(names)).json()["output"]["text"] == WHOLE
    assert live.instruct.requests[0].sampling.top_k == 20
    assert native(live, {"top_k": None}).status_code == 200
    assert live.instruct.requests[1].sampling.top_k == 0
    for absent in (None, {}):
        assert native(live, absent).json()["output"]["text"] == WHOLE


def test_a_cap_on_the_context_caps_prompt_and_answer(live: Live) -> None:
    length = len(live.instruct.tokenizer.encode(WHOLE))
    assert native(live, {"max_context_length": 20}).status_code == 200
    prompt = len(live.instruct.requests[0].prompt)
    assert live.instruct.requests[0].sampling.max_total_tokens == 20 - prompt < length
    refused = native(live, {"max_context_length": 5}).json()
    assert refused["message"] == "Range of input length should be [1, 4]"
    assert native(live, {"max_context_length": 10 * CONTEXT}).status_code == 200
    assert live.instruct.requests[-1].sampling.max_total_tokens is None


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"X-DashScope-WorkSpace": "ws-1"}, 200),
        ({"X-DashScope-DataInspection": '{"input":"cip","output":"cip"}'}, 200),
        ({"X-DashScope-Plugin": "{}"}, 200),
        ({"X-DashScope-OssResourceResolve": "enable"}, 200),
        ({"X-DashScope-Async": "disable"}, 200),
        ({"X-DashScope-Async": "enable"}, 400),
        ({"X-DashScope-EncryptionKey": "{}"}, 400),
        ({"Content-Type": "text/plain"}, 200),
        ({"Authorization": "Bearer sk-bad", "X-DashScope-API-Key": "the right one"}, 401),
    ],
)
def test_headers(live: Live, headers: dict[str, str], status: int) -> None:
    headers = {name: live.key if value == "the right one" else value for name, value in headers.items()}
    assert native(live, {}, **headers).status_code == status


def test_the_other_header_for_keys(live: Live) -> None:
    url = live.url + "/api/v1/services/aigc/text-generation/generation"
    body = {"model": INSTRUCT, "input": {"prompt": "Hi"}}
    for key, status in ((live.key, 200), ("sk-bad", 401)):
        assert httpx.post(url, json=body, headers={"X-DashScope-API-Key": key}).status_code == status


@pytest.mark.parametrize(
    "headers",
    [{"X-DashScope-SSE": "enable"}, {"Accept": "text/event-stream"}, {"X-DashScope-SSE": "disable"}],
)
def test_what_makes_a_stream(live: Live, headers: dict[str, str]) -> None:
    found = native(live, {}, **headers).headers["content-type"].lower()
    streamed = "disable" not in headers.values()
    assert found == ("text/event-stream;charset=utf-8" if streamed else "application/json")
