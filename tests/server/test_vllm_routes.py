"""The tokenizer endpoints as vLLM has them, asked as evaluation harnesses ask: no model, no /v1."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from .conftest import CONTEXT, Live

HI = [{"role": "user", "content": "Hi"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
BASES = ("", "/v1", "/compatible-mode/v1")


@pytest.mark.parametrize("base", BASES)
def test_there_and_back(http: httpx.Client, live: Live, base: str) -> None:
    told = http.post(
        base + "/tokenize", json={"prompt": "代码改变世界 <|im_end|>", "add_special_tokens": False}
    ).json()
    tokenizer = live.instruct.tokenizer
    assert told["tokens"] == tokenizer.encode_trusted("代码改变世界 <|im_end|>")
    assert told["tokens"][-1] == tokenizer.control["<|im_end|>"] and told["token_strs"] is None
    assert told["count"] == len(told["tokens"]) and told["max_model_len"] == CONTEXT
    back = http.post(base + "/detokenize", json={"tokens": told["tokens"]}).json()
    assert back == {"prompt": "代码改变世界 <|im_end|>"}
    assert http.post(base + "/detokenize", json={"model": "tiny-base", "tokens": []}).json() == {"prompt": ""}


@pytest.mark.parametrize("base", BASES)
def test_what_a_harness_needs_to_know(http: httpx.Client, live: Live, base: str) -> None:
    told = http.get(base + "/tokenizer_info").json()
    tokenizer = live.instruct.tokenizer
    assert told["eos_token"] == tokenizer.special_tokens["eos_token"] and "bos_token" in told
    (eos,) = http.post(base + "/tokenize", json={"prompt": told["eos_token"]}).json()["tokens"]
    assert eos == tokenizer.control[told["eos_token"]]
    assert told["chat_template"] == tokenizer.chat_template and told["model_max_length"] == CONTEXT
    assert told["vocab_size"] == tokenizer.vocab_size
    plain = http.get(base + "/tokenizer_info", params={"model": "tiny-base"}).json()
    assert plain["chat_template"] is None


def test_a_conversation_is_what_the_engine_would_see(http: httpx.Client, live: Live) -> None:
    asked: dict[str, Any] = {"model": "tiny-instruct", "messages": HI, "tools": [TOOL]}
    http.post("/v1/chat/completions", json=asked).raise_for_status()
    told = http.post("/tokenize", json=asked | {"return_token_strs": True}).json()
    assert told["tokens"] == list(live.instruct.requests[0].prompt)
    assert "".join(told["token_strs"]) == live.instruct.tokenizer.decode(told["tokens"], skip_control=False)
    closed = http.post("/tokenize", json=asked | {"add_generation_prompt": False}).json()["tokens"]
    assert closed == told["tokens"][: len(closed)] and len(closed) < len(told["tokens"])
    turns = [*HI, {"role": "assistant", "content": "Once"}]
    ended = {"messages": turns, "add_generation_prompt": False, "continue_final_message": True}
    begun = http.post("/tokenize", json=ended | {"return_token_strs": True}).json()["token_strs"]
    assert "".join(begun).endswith("assistant\nOnce")


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "x", "return_token_strs": 1}, "return_token_strs"),
        ("/tokenize", {"prompt": "x", "model": 5}, "model"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": HI, "chat_template": "{{ x }}"}, "chat_template"),
        ("/tokenize", {"messages": HI, "tools": 5}, "tools"),
        (
            "/tokenize",
            {"messages": HI, "add_generation_prompt": True, "continue_final_message": True},
            "continue_final_message",
        ),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "x"}, "tokens"),
        ("/detokenize", {"tokens": [10**9]}, "tokens"),
        ("/detokenize", {"tokens": [True]}, "tokens"),
    ],
)
def test_bad_bodies_are_refused_by_name(http: httpx.Client, path: str, body: Any, param: str) -> None:
    answer = http.post(path, json=body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param


def test_keys_and_models_are_checked(http: httpx.Client, live: Live) -> None:
    assert http.post("/tokenize", json={"prompt": "x", "model": "gpt-9"}).status_code == 404
    assert http.get("/tokenizer_info", params={"model": "gpt-9"}).status_code == 404
    for method, path in (("POST", "/tokenize"), ("POST", "/detokenize"), ("GET", "/tokenizer_info")):
        assert httpx.request(method, live.url + path, json={}).status_code == 401
