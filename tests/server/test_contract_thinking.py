"""The contract's rules of thinking, by every way of the SDKs."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from .conftest import Live
from .ways import HI, WAYS, ask

pytestmark = pytest.mark.parametrize("running", ["httptools"], indirect=True)
INSTRUCT, THINKING = "qwen3-next-80b-a3b-instruct", "qwen3-next-80b-a3b-thinking"
THOUGHT = "Let me think. The sky?\n</think>\n\nIt is blue."

# What the model says, parameters, and the reasoning, text and finish that its user reads.
CASES: list[tuple[str, dict[str, Any], str, str, str]] = [
    (THOUGHT, {}, "Let me think. The sky?", "It is blue.", "stop"),
    (THOUGHT, {"enable_thinking": True}, "Let me think. The sky?", "It is blue.", "stop"),
    (THOUGHT, {"stop": "The"}, "Let me think. The sky?", "It is blue.", "stop"),  # stops are for the answer
    (THOUGHT, {"stop": "blue"}, "Let me think. The sky?", "It is ", "stop"),
    ("</think>\n\nAt once.", {}, "", "At once.", "stop"),
    ("One.\n\nTwo.\n</think>\n\n\n\nThree.", {}, "One.\n\nTwo.", "\n\nThree.", "stop"),
    (
        "I must not say </thin or <think",
        {"max_completion_tokens": 500},
        "I must not say </thin or <think",
        "",
        "stop",
    ),
    ("Hm.\n</think>\n\n", {}, "Hm.", "", "stop"),
]


@pytest.mark.parametrize("way", WAYS)
def test_reasoning_and_text(way: str, live: Live) -> None:
    for said, params, reasoning, text, finish in CASES:
        for pieces in (1, 4):
            live.thinking.say(said, pieces=pieces)
            told = ask(way, live, THINKING, **params)
            assert (told.reasoning, told.text, told.finish) == (reasoning, text, finish), (said, told)
            assert told.total == told.input + told.output


@pytest.mark.parametrize("way", WAYS)
def test_a_thought_without_an_end_is_all_reasoning(way: str, live: Live) -> None:
    live.thinking.say("I never stop", end=False)
    told = ask(way, live, THINKING)
    assert (told.reasoning, told.text, told.finish) == ("I never stop", "", "length")


@pytest.mark.parametrize("way", WAYS)
def test_max_tokens_counts_the_answer_alone(way: str, live: Live) -> None:
    live.thinking.say(THOUGHT)
    told = ask(way, live, THINKING, max_tokens=2)
    assert told.reasoning == "Let me think. The sky?" and told.finish == "length"
    answer = live.thinking.tokenizer.encode("\n\nIt is blue.")
    assert told.text == live.thinking.tokenizer.decode(answer[:2]).lstrip("\n")


@pytest.mark.parametrize("way", WAYS)
def test_the_budget_reaches_the_engine(way: str, live: Live) -> None:
    live.thinking.say(THOUGHT)
    assert ask(way, live, THINKING, thinking_budget=5).status == 200
    request = live.thinking.requests[0]
    assert request.sampling.thinking_budget == 5 and request.reasoning is not None
    assert request.reasoning.end in request.reasoning.close


@pytest.mark.parametrize("way", WAYS)
def test_reasoning_of_earlier_turns_is_not_read_again(way: str, live: Live) -> None:
    live.thinking.say(THOUGHT)
    turns = [*HI, {"role": "assistant", "content": "Hello!", "reasoning_content": "They greet."}, *HI]
    assert ask(way, live, THINKING, turns).text == "It is blue."
    prompt = live.thinking.tokenizer.decode(live.thinking.requests[0].prompt, skip_control=False)
    assert "Hello!" in prompt and "They greet." not in prompt and prompt.endswith("assistant\n<think>\n")


# dashscope.Client drops the mark when it speaks OpenAI's protocol.
@pytest.mark.parametrize("way", [way for way in WAYS if "client-openai" not in way])
def test_a_text_to_go_on_with(way: str, live: Live) -> None:
    turns = [*HI, {"role": "assistant", "content": "Once upon", "partial": True}]
    told = ask(way, live, INSTRUCT, turns)
    assert told.text == "Hello there, friend."
    assert live.instruct.tokenizer.decode(live.instruct.requests[0].prompt).endswith("assistant\nOnce upon")
    assert told.input == len(live.instruct.requests[0].prompt)
    refused = ask(way, live, THINKING, turns)
    assert refused.status == 400 and "partial" in refused.message


def test_usage_and_keys_on_the_wire(live: Live) -> None:
    live.thinking.say(THOUGHT)
    thought = len(live.thinking.tokenizer.encode("Let me think. The sky?\n"))
    body = {"model": THINKING, "messages": HI, "input": {"messages": HI}}
    native = httpx.post(
        live.url + "/api/v1/services/aigc/text-generation/generation", json=body, headers=live.auth
    ).json()
    assert native["output"]["choices"][0]["message"] == {
        "role": "assistant",
        "content": "It is blue.",
        "reasoning_content": "Let me think. The sky?",
    }
    assert native["usage"]["output_tokens_details"] == {"reasoning_tokens": thought}
    compat = httpx.post(live.url + "/v1/chat/completions", json=body, headers=live.auth).json()
    assert compat["choices"][0]["message"] == native["output"]["choices"][0]["message"]
    assert compat["usage"]["completion_tokens_details"] == {"reasoning_tokens": thought}
    assert "<think>" not in json.dumps([native, compat]) and "</think>" not in json.dumps([native, compat])
