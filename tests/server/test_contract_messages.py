"""The contract's table of refusals: users search for these words, so they are the same by every way."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from .conftest import Live
from .ways import COMPAT, HI, NATIVE, WAYS, ask

pytestmark = pytest.mark.parametrize("running", ["httptools"], indirect=True)
INSTRUCT, THINKING = "qwen3-next-80b-a3b-instruct", "qwen3-next-80b-a3b-thinking"
TOOLS = [{"type": "function", "function": {"name": "get_weather"}}]
SEED = 2**63 - 1
FORMAT = "Unknown format of response_format, response_format should be a dict, includes 'type' and an "
FORMAT += "optional key 'json_schema'."
CHOICE = 'tool_choice is one of the strings that should be ["none", "auto"]'
BUDGET = "The thinking_budget parameter must be a positive integer and not greater than 81920"
NO_JSON = (
    "'messages' must contain the word 'json' in some form, to use 'response_format' of type 'json_object'."
)

PARAMETERS: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": 0}, "Range of max_tokens should be [1, 32768]"),
    ({"max_tokens": 32_769}, "Range of max_tokens should be [1, 32768]"),
    ({"temperature": 2.0}, "Temperature should be in [0.0, 2.0)"),
    ({"temperature": -0.1}, "Temperature should be in [0.0, 2.0)"),
    ({"temperature": "0.5"}, "'temperature' must be Float"),
    ({"temperature": True}, "'temperature' must be Float"),
    ({"top_p": 0}, "Range of top_p should be (0.0, 1.0]"),
    ({"top_p": 1.1}, "Range of top_p should be (0.0, 1.0]"),
    ({"top_k": -1}, "Parameter top_k be greater than or equal to 0"),
    ({"repetition_penalty": 0}, "Repetition_penalty should be greater than 0.0"),
    ({"presence_penalty": 2.1}, "Presence_penalty should be in [-2.0, 2.0]"),
    ({"n": 0}, "Range of n should be [1, 4]"),
    ({"n": 5}, "Range of n should be [1, 4]"),
    ({"seed": -1}, f"Range of seed should be [0, {SEED}]"),
    ({"seed": SEED + 1}, f"Range of seed should be [0, {SEED}]"),
    ({"tools": TOOLS, "tool_choice": "always"}, CHOICE),
    ({"response_format": "json"}, FORMAT),
    ({"response_format": {"type": "xml"}}, FORMAT),
    ({"response_format": {"type": "json_object"}}, NO_JSON),
    ({"top_logprobs": 1}, "top_logprobs is possible only when logprobs is true"),
    ({"logprobs": True, "top_logprobs": 6}, "Range of top_logprobs should be [0, 5]"),
    ({"stop": ["a", 5]}, "'stop' must be a string, a list of strings, or a list of token ids"),
]
THINKING_PARAMETERS: list[tuple[dict[str, Any], str]] = [
    ({"enable_thinking": False}, "The value of the enable_thinking parameter is restricted to True."),
    ({"thinking_budget": 0}, BUDGET),
    ({"thinking_budget": 81_921}, BUDGET),
]
ROLES = "['system', 'assistant', 'user', 'tool', 'function']"
EMPTY = "Role must be user or assistant and Content length must be greater than 0"
STRAY = 'messages with role "tool" must be a response to a preceeding message with "tool_calls".'
MESSAGES: list[tuple[Any, str]] = [
    ([{"role": "x", "content": "Hi"}], f"x is not one of {ROLES} - 'messages.['0].role'"),
    ([*HI, {"role": "bot", "content": "Hi"}], f"bot is not one of {ROLES} - 'messages.['1].role'"),
    ([{"role": "system", "content": "Hi"}], EMPTY),
    ([{"role": "user", "content": ""}], EMPTY),
    ([{"role": "user", "content": 5}], "input content must be a string."),
    ([{"role": "user", "content": [{"image": "http://x/y.png"}]}], "input content must be a string."),
    ([{"role": "user"}], "The content field is a required field."),
    ([*HI, {"role": "assistant"}], "The content field is a required field."),
    ([*HI, {"role": "tool", "tool_call_id": "c", "content": "sunny"}], STRAY),
]
# The second surface of dashscope checks messages itself before it sends any.
PLAIN = [way for way in WAYS if "client" not in way]


def check(way: str, told: Any, message: str) -> None:
    assert message in told.message, (way, told)
    code = "InvalidParameter" if way in NATIVE else "invalid_parameter_error"
    assert (told.status, told.code) == (400, code), told
    assert told.text == "" and len(told.request_id) == 36
    if "generation" not in way:
        assert told.raised == "BadRequestError"


@pytest.mark.parametrize("way", WAYS)
def test_parameters(way: str, live: Live) -> None:
    for params, message in PARAMETERS:
        check(way, ask(way, live, INSTRUCT, **params), message)
    for params, message in THINKING_PARAMETERS:
        check(way, ask(way, live, THINKING, **params), message)
    assert not live.instruct.requests and not live.thinking.requests


@pytest.mark.parametrize("way", PLAIN)
def test_messages(way: str, live: Live) -> None:
    for messages, message in MESSAGES:
        check(way, ask(way, live, INSTRUCT, messages), message)
    assert not live.instruct.requests


@pytest.mark.parametrize("way", WAYS)
def test_a_prompt_that_is_too_long(way: str, live: Live) -> None:
    long = [{"role": "user", "content": "far too long " * 400}]
    told = ask(way, live, INSTRUCT, long)
    check(way, told, "Range of input length should be [1, 599]")
    if way in COMPAT:  # OpenAI clients look for their own wording
        assert "This model's maximum context length is 600 tokens" in told.message
    else:
        assert told.message == "Range of input length should be [1, 599]"


NATIVE_ONLY: list[tuple[str, bool, dict[str, Any], str]] = [
    (INSTRUCT, False, {"incremental_output": True}, "parameter incremental_output only support stream call"),
    (
        THINKING,
        True,
        {"incremental_output": False},
        'The incremental_output parameter must be "true" when enable_thinking is true',
    ),
    (
        THINKING,
        True,
        {"result_format": "text"},
        'The result_format parameter must be "message" when enable_thinking is true',
    ),
    (INSTRUCT, False, {"result_format": "xml"}, 'result_format must be "text" or "message"'),
]
BODIES: list[tuple[str, Any, str]] = [
    ("native", b"", "Required body invalid, please check the request body format."),
    ("native", b"{", "Required body invalid, please check the request body format."),
    ("native", b"[]", "Required body invalid, please check the request body format."),
    (
        "native",
        {"model": INSTRUCT, "input": "Hi"},
        "Required body invalid, please check the request body format.",
    ),
    ("native", {"input": {"prompt": "Hi"}}, 'Required parameter "model" missing from request.'),
    (
        "native",
        {"model": INSTRUCT, "input": {}},
        'Either "prompt" or "messages" must exist and cannot both be none',
    ),
    ("native", {"model": INSTRUCT}, 'Either "prompt" or "messages" must exist and cannot both be none'),
    ("native", {"model": INSTRUCT, "input": {"messages": []}}, "[] is too short - 'messages'"),
    ("compat", {"model": INSTRUCT, "messages": []}, "[] is too short - 'messages'"),
    ("compat", b"{", "Required body invalid, please check the request body format."),
    ("compat", {"messages": HI}, "you must provide a model parameter"),
    ("compat", {"model": INSTRUCT}, 'Either "prompt" or "messages" must exist and cannot both be none'),
]
PATHS = {
    "native": "/api/v1/services/aigc/text-generation/generation",
    "compat": "/compatible-mode/v1/chat/completions",
}


def test_native_parameters_that_sdks_mend_or_drop(live: Live) -> None:
    for model, stream, params, message in NATIVE_ONLY:
        body = {"model": model, "input": {"messages": HI}, "parameters": params}
        headers = live.auth | {"X-DashScope-SSE": "enable" if stream else "disable"}
        answer = httpx.post(live.url + PATHS["native"], json=body, headers=headers)
        assert (answer.status_code, answer.json()["message"]) == (400, message)


@pytest.mark.parametrize(("dialect", "body", "message"), BODIES)
def test_bodies_that_sdks_do_not_send(live: Live, dialect: str, body: Any, message: str) -> None:
    content = {"content": body} if isinstance(body, bytes) else {"json": body}
    answer = httpx.post(live.url + PATHS[dialect], headers=live.auth, **content)
    told = answer.json() if dialect == "native" else answer.json()["error"]
    assert (answer.status_code, told["message"]) == (400, message)
    assert told["code"] == ("InvalidParameter" if dialect == "native" else "invalid_parameter_error")
    assert answer.json()["request_id"] == answer.headers["X-Request-ID"]
