"""No JSON, however odd, makes a dialect fail but by refusing it; what is accepted is a whole request."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnext.server import anthropic, openai_completions, responses, vllm
from qnext.server.errors import ApiError
from qnext.server.exchange import ChatRequest, Conversation, Rules

from .test_validation import INSTRUCT, THINKING

WORDS = st.sampled_from(
    "user assistant system developer tool text thinking tool_use tool_result input_text output_text message "
    "function function_call function_call_output reasoning enabled disabled adaptive auto any none required "
    "json_schema json_object custom f c1 {} object role content".split()
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-2, 10**9)
    | st.floats(allow_nan=False)
    | WORDS
    | st.text(max_size=4)
)
KEYS = st.sampled_from(
    "type role content text thinking id name input tool_use_id call_id arguments output summary input_schema "
    "parameters format schema budget_tokens mode tools effort is_error refusal".split()
)
TREES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=12,
)
FIELDS = {
    "anthropic": "max_tokens messages system tools tool_choice thinking stop_sequences stream temperature "
    "top_k output_config output_format mcp_servers",
    "responses": "input instructions tools tool_choice text reasoning include top_logprobs max_output_tokens "
    "stream store metadata previous_response_id parallel_tool_calls stop seed user background",
    "completions": "prompt echo logprobs max_tokens n best_of suffix stream stop",
    "tokenize": "prompt messages tools add_generation_prompt continue_final_message return_token_strs",
}
GOOD: dict[str, dict[str, Any]] = {
    "anthropic": {"max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]},
    "responses": {"input": "Hi"},
    "completions": {"prompt": "Hi", "echo": True, "logprobs": 1},
    "tokenize": {"messages": [{"role": "user", "content": "Hi"}]},
}
PARSERS: dict[str, Callable[[dict[str, Any], Rules], Any]] = {
    "anthropic": lambda body, rules: anthropic.parse(body, rules, request_id="r")[0],
    "responses": lambda body, rules: responses.parse(body, rules, request_id="r", created=1)[0],
    "completions": lambda body, rules: openai_completions.parse(body, rules, request_id="r", created=1)[0],
    "tokenize": lambda body, rules: vllm.parse_tokenize(body, rules),
}


@pytest.mark.parametrize("dialect", PARSERS)
@settings(max_examples=300, deadline=None)
@given(data=st.data(), rules=st.sampled_from([INSTRUCT, THINKING]))
def test_odd_bodies_are_refused_in_words(dialect: str, data: st.DataObject, rules: Rules) -> None:
    odd = data.draw(st.dictionaries(st.sampled_from(FIELDS[dialect].split()), TREES, max_size=4))
    body = {"model": "m", **GOOD[dialect], **odd}
    try:
        asked = PARSERS[dialect](body, rules)
    except ApiError as error:
        assert error.status == 400 and error.message and error.param
        return
    assert not isinstance(asked, ChatRequest) or asked.prompts
    json.dumps(body)


@settings(max_examples=300, deadline=None)
@given(messages=st.lists(st.fixed_dictionaries({"role": WORDS, "content": TREES}), min_size=1, max_size=4))
def test_odd_messages(messages: Any) -> None:
    body = {"model": "m", "max_tokens": 9, "messages": messages}
    try:
        prompt = anthropic.read_prompt(body, INSTRUCT)
    except ApiError as error:
        assert error.status == 400 and (error.param or "").startswith("messages")
    else:
        assert isinstance(prompt, Conversation) and any(m.role == "user" for m in prompt.messages)


ITEMS = st.dictionaries(KEYS, TREES, max_size=6)


@settings(max_examples=300, deadline=None)
@given(items=st.lists(ITEMS, min_size=1, max_size=4))
def test_odd_items(items: Any) -> None:
    try:
        _, reply, kept = responses.parse({"model": "m", "input": items}, INSTRUCT, request_id="r", created=1)
    except ApiError as error:
        assert error.status == 400 and (error.param or "").startswith("input")
    else:
        assert all(item["id"] and item["type"] for item in kept) and json.dumps(reply.told)
