"""The messages of the contract, the same through every dialect, and no other exception for any body."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnext.server import dashscope, openai, openai_completions
from qnext.server.errors import ApiError, compat_body, native_body
from qnext.server.exchange import ChatRequest, Rules
from qnext.text.grammar import ANY_OBJECT, CallForm, GrammarSpec, TextForm

INSTRUCT = Rules(
    thinking=False,
    template=True,
    vocab_size=1000,
    defaults={"temperature": 0.7, "top_p": 0.8, "top_k": 20, "presence_penalty": 0.0},
    max_output=32_768,
    max_thinking=81_920,
)
THINKING = replace(INSTRUCT, thinking=True)
BASE = replace(INSTRUCT, template=False)
HI = [{"role": "user", "content": "Hi"}]
SEED = 2**63 - 1
TOOL = {"type": "function", "function": {"name": "f"}}


def native(params: Any, rules: Rules = INSTRUCT, stream: bool = True) -> ChatRequest:
    body = {"model": "m", "input": {"messages": HI}, "parameters": params}
    return dashscope.parse(body, rules, stream=stream, request_id="r")[0]


def compat(params: dict[str, Any], rules: Rules = INSTRUCT, stream: bool = True) -> ChatRequest:
    body = {"model": "m", "messages": HI, "stream": stream, **params}
    return openai.parse(body, rules, request_id="r", created=1)[0]


REFUSED = [
    ({"temperature": 2}, "Temperature should be in [0.0, 2.0)"),
    ({"temperature": -0.1}, "Temperature should be in [0.0, 2.0)"),
    ({"temperature": math.nan}, "Temperature should be in [0.0, 2.0)"),
    ({"temperature": 10**400}, "Temperature should be in [0.0, 2.0)"),
    ({"temperature": "0.5"}, "'temperature' must be Float"),
    ({"temperature": True}, "'temperature' must be Float"),
    ({"temperature": [1]}, "'temperature' must be Float"),
    ({"top_p": 0}, "Range of top_p should be (0.0, 1.0]"),
    ({"top_p": 1.01}, "Range of top_p should be (0.0, 1.0]"),
    ({"top_k": -1}, "Parameter top_k be greater than or equal to 0"),
    ({"top_k": 2.5}, "'top_k' must be Integer"),
    ({"min_p": -1}, "Range of min_p should be [0.0, 1.0]"),
    ({"repetition_penalty": 0}, "Repetition_penalty should be greater than 0.0"),
    ({"repetition_penalty": math.inf}, "Repetition_penalty should be greater than 0.0"),
    ({"presence_penalty": 2.1}, "Presence_penalty should be in [-2.0, 2.0]"),
    ({"frequency_penalty": -2.1}, "Frequency_penalty should be in [-2.0, 2.0]"),
    ({"max_tokens": 0}, "Range of max_tokens should be [1, 32768]"),
    ({"max_tokens": 32_769}, "Range of max_tokens should be [1, 32768]"),
    ({"max_tokens": "many"}, "'max_tokens' must be Integer"),
    ({"max_completion_tokens": 0}, "Range of max_completion_tokens should be [1, 32768]"),
    ({"seed": -1}, f"Range of seed should be [0, {SEED}]"),
    ({"seed": SEED + 1}, f"Range of seed should be [0, {SEED}]"),
    ({"n": 0}, "Range of n should be [1, 4]"),
    ({"n": 5}, "Range of n should be [1, 4]"),
    ({"top_logprobs": 6, "logprobs": True}, "Range of top_logprobs should be [0, 5]"),
    ({"top_logprobs": 1}, "top_logprobs is possible only when logprobs is true"),
    ({"logprobs": 1}, "'logprobs' must be Boolean"),
    ({"tool_choice": "always"}, 'tool_choice is one of the strings that should be ["none", "auto"]'),
    ({"tool_choice": 3}, 'tool_choice is one of the strings that should be ["none", "auto"]'),
    ({"tool_choice": "required"}, 'tool_choice is "required", but no tools are given'),
    (
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        "tool_choice names 'g', but no tool of that name is given",
    ),
    ({"structured_outputs": {"regex": 3}}, "structured_outputs.regex must be a regular expression"),
    ({"max_context_length": 0}, "Range of max_context_length should be [1, 2147483648]"),
    ({"max_context_length": "128K"}, "'max_context_length' must be Integer"),
    ({"priority": 0.5}, "'priority' must be Integer"),
    ({"priority": 2**40}, "Range of priority should be [-2147483648, 2147483648]"),
    ({"enable_thinking": "yes"}, "'enable_thinking' must be Boolean"),
    (
        {"response_format": "json"},
        "Unknown format of response_format, response_format should be a dict, includes 'type' and an "
        "optional key 'json_schema'.",
    ),
    ({"stop": [1, "a"]}, "'stop' must be a string, a list of strings, or a list of token ids or of lists of"),
    ({"stop": [1000]}, "'stop' must be a string"),
    ({"stop": 7}, "'stop' must be a string"),
    ({"stop": ["x"] * 17}, "Range of stop should be [0, 16] items"),
    ({"tools": "f"}, "'tools' must be a list"),
    ({"tools": [{"type": "function"}]}, "tools[0] must be"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name must be"),
    (
        {"tools": [{"function": {"name": "f", "description": 0}}]},
        "tools[0].function.description must be a text",
    ),
    (
        {"tools": [{"function": {"name": "f", "parameters": 0}}]},
        "tools[0].function.parameters must be a JSON schema",
    ),
]


@pytest.mark.parametrize(("params", "message"), REFUSED, ids=[str(p)[:40] for p, _ in REFUSED])
def test_refused_in_both_dialects_in_the_same_words(params: dict[str, Any], message: str) -> None:
    for parse in (native, compat):
        with pytest.raises(ApiError) as caught:
            parse(params)
        error = caught.value
        assert error.status == 400 and error.message.startswith(message)
        assert str(error.param).split("[")[0] in params
        assert native_body(error, "r")["code"] == "InvalidParameter"
        assert compat_body(error, "r")["error"]["code"] == "invalid_parameter_error"


def test_the_form_of_the_answer() -> None:
    json_object = {"response_format": {"type": "json_object"}}
    words = "'messages' must contain the word 'json' in some form, to use 'response_format' of type "
    words += "'json_object'."
    for parse in (native, compat):
        with pytest.raises(ApiError) as caught:
            parse(json_object)
        assert (caught.value.message, caught.value.param) == (words, "messages")
        asked = parse({"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": True})
        assert asked.grammar == GrammarSpec(
            calls=(CallForm("f", ANY_OBJECT, "tools[0].function.parameters"),), many=True
        )
        assert parse({}).grammar is None
    body = {"model": "m", "messages": [{"role": "user", "content": "JSON!"}], **json_object}
    asked = openai.parse(body, INSTRUCT, request_id="r", created=1)[0]
    assert asked.grammar == GrammarSpec(TextForm("schema", ANY_OBJECT, "response_format"))
    body = {"model": "m", "prompt": "x", **json_object}
    assert openai_completions.parse(body, BASE, request_id="r", created=1)[0].grammar == asked.grammar


def test_priority() -> None:
    for parse in (native, compat):
        assert [parse({"priority": p}).priority for p in (None, 0, -5, 7)] == [0, 0, -5, 7]


def test_thinking_rules() -> None:
    words = "The thinking_budget parameter must be a positive integer and not greater than 81920"
    for params, message in [
        ({"enable_thinking": False}, "The value of the enable_thinking parameter is restricted to True."),
        ({"thinking_budget": 0}, words),
        ({"thinking_budget": 81_921}, words),
    ]:
        for parse in (native, compat):
            with pytest.raises(ApiError) as caught:
                parse(params, THINKING)
            assert caught.value.message == message
            parse(params, INSTRUCT)
    with pytest.raises(ApiError, match="'thinking_budget' must be Integer"):
        compat({"thinking_budget": 0.5}, INSTRUCT)
    strict = replace(THINKING, thinking_non_stream=False)
    with pytest.raises(ApiError, match="only support stream mode"):
        compat({}, strict, stream=False)
    assert compat({}, strict).stream and not compat({}, THINKING, stream=False).stream
    assert compat({"max_completion_tokens": 100_000}, THINKING).sampling.max_total_tokens == 100_000


def test_native_only_rules() -> None:
    for params, stream, rules, message in [
        (
            {"incremental_output": True},
            False,
            INSTRUCT,
            "parameter incremental_output only support stream call",
        ),
        (
            {"incremental_output": False},
            True,
            THINKING,
            'The incremental_output parameter must be "true" when enable_thinking is true',
        ),
        (
            {"result_format": "text"},
            True,
            THINKING,
            'The result_format parameter must be "message" when enable_thinking is true',
        ),
        ({"result_format": "xml"}, True, INSTRUCT, 'result_format must be "text" or "message"'),
        ({"result_format": "text", "tools": [TOOL]}, True, INSTRUCT, "The result_format parameter must be"),
        ("nonsense", True, INSTRUCT, "Required body invalid, please check the request body format."),
    ]:
        with pytest.raises(ApiError) as caught:
            native(params, rules, stream)
        assert caught.value.message.startswith(message)
    native({"incremental_output": False}, THINKING, stream=False)


ALL = {
    "temperature": 0.5,
    "top_p": 0.9,
    "top_k": 7,
    "min_p": 0.05,
    "repetition_penalty": 1.2,
    "presence_penalty": 1,
    "frequency_penalty": 0.5,
    "seed": 11,
    "max_tokens": 50,
    "max_completion_tokens": 80,
    "stop": ["a", ""],
    "n": 3,
    "logprobs": True,
    "top_logprobs": 2,
    "parallel_tool_calls": True,
}


def test_both_dialects_ask_for_the_same() -> None:
    assert native(ALL) == compat(ALL)
    sampling = native(ALL).sampling
    assert (sampling.stop, sampling.n, sampling.logprobs, sampling.seed) == (("a",), 3, 2, 11)
    assert native(ALL).max_calls is None


def test_defaults_null_and_unknown() -> None:
    nulls = dict.fromkeys(ALL.keys() - {"top_k"}) | {
        "response_format": None,
        "tools": None,
        "incremental_output": None,
    }
    for params in ({}, nulls, {"max_context_length": 131_072, "enable_search": True, "logit_bias": {}}):
        for parse in (native, compat):
            asked = parse(params)
            sampling = asked.sampling
            assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.7, 0.8, 20)
            assert (sampling.n, sampling.logprobs, sampling.stop, asked.max_calls) == (1, None, (), 1)
            assert sampling.seed is not None
    assert native(None).sampling.temperature == 0.7
    assert len({native({}).sampling.seed for _ in range(5)}) > 1


def test_edges() -> None:
    assert native({"temperature": 0}).sampling.temperature == 0
    assert [native({"top_k": k}).sampling.top_k for k in (0, 100, 101, 10**40, 5.0)] == [0, 100, 0, 0, 5]
    assert native({"top_k": None}).sampling.top_k == compat({"top_k": None}).sampling.top_k == 0
    assert native({"max_context_length": 5}).max_context == 5 and native({}).max_context is None
    assert native({"max_tokens": 32_768.0}).sampling.max_tokens == 32_768
    assert native({"seed": SEED}).sampling.seed == SEED
    assert native({"n": 4, "tools": [TOOL]}).sampling.n == 1
    stops = native({"stop": [5, 6]})
    assert (stops.sampling.stop_token_ids, stops.stop_sequences) == ((5, 6), ())
    stops = native({"stop": [[5], [6, 7]]})
    assert (stops.sampling.stop_token_ids, stops.stop_sequences) == ((5,), ((6, 7),))
    assert native({"stop": []}).sampling.stop == ()
    assert native({"tools": [TOOL], "tool_choice": "none"}).tools == ()
    assert native({"response_format": {"type": "text"}})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = [*ALL, "messages", "tools", "tool_choice", "response_format", "enable_thinking", "thinking_budget"]
NAMES += ["structured_outputs", "priority"]
NAMES += [
    "result_format",
    "incremental_output",
    "stream",
    "stream_options",
    "prompt",
    "history",
    "echo",
    "suffix",
]
ROLES = st.sampled_from(["system", "user", "assistant", "tool", "function", "developer", "bot"])
MESSAGE = st.fixed_dictionaries(
    {"role": ROLES | JSON},
    optional={
        "content": st.text() | st.lists(st.fixed_dictionaries({"text": st.text()})) | JSON,
        "tool_calls": JSON | st.just([{"function": {"name": "f"}}]),
        "partial": st.booleans(),
        "reasoning_content": JSON,
    },
)


@settings(max_examples=300, deadline=None)
@given(
    params=st.dictionaries(st.sampled_from(NAMES), JSON, max_size=4),
    messages=JSON | st.lists(MESSAGE, max_size=4),
    rules=st.sampled_from([INSTRUCT, THINKING, BASE]),
)
def test_any_body_is_read_or_refused(params: dict[str, Any], messages: Any, rules: Rules) -> None:
    body = {"model": "m", "messages": messages, "prompt": messages, **params}
    for parse in (
        lambda: openai.parse(body, rules, request_id="r", created=1),
        lambda: openai_completions.parse(body, rules, request_id="r", created=1),
        lambda: dashscope.parse(
            {"model": "m", "input": body, "parameters": params}, rules, stream=True, request_id="r"
        ),
        lambda: dashscope.parse(
            {"model": "m", "input": messages, "parameters": messages}, rules, stream=False, request_id="r"
        ),
    ):
        try:
            asked, _ = parse()
            assert asked.prompts and asked.sampling.seed is not None
        except ApiError as error:
            assert error.status == 400 and json.dumps(compat_body(error, "r"))
