"""Routes, the order of checks, and raw HTTP on the wire."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from .conftest import CONTEXT, CREATED, Live

PARSERS = ("h11", "httptools")
NATIVE = "/api/v1/services/aigc/text-generation/generation"
CHAT = "/compatible-mode/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HI = [{"role": "user", "content": "Hi"}]
SSE = {"X-DashScope-SSE": "enable"}


def native(model: str = "tiny-instruct", **parameters: Any) -> dict[str, Any]:
    return {"model": model, "input": {"prompt": "Hi"}, "parameters": parameters}


def chat(model: str = "tiny-instruct", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": HI, **more}


def frames(text: str) -> list[dict[str, Any]]:
    """The JSON of every data line but [DONE]."""
    lines = [line.removeprefix("data:").strip() for line in text.split("\n") if line.startswith("data:")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def test_health_needs_no_key(live: Live) -> None:
    answer = httpx.get(live.url + "/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert len(answer.headers["x-request-id"]) == 36


def test_native_text_answer(http: httpx.Client) -> None:
    answer = http.post(NATIVE, json=native())
    body = answer.json()
    assert answer.status_code == 200
    assert body["output"] == {"text": "Hello there, friend.", "finish_reason": "stop"}
    assert body["request_id"] == answer.headers["x-request-id"]
    usage = body["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
    assert "code" not in body and "message" not in body


def test_native_stream_on_the_wire(http: httpx.Client, live: Live) -> None:
    live.instruct.say("Hé\u2028 there")
    answer = http.post(NATIVE, json=native(result_format="message", incremental_output=True), headers=SSE)
    assert answer.headers["content-type"] == "text/event-stream;charset=UTF-8"
    assert answer.headers["cache-control"] == "no-cache" and answer.headers["x-accel-buffering"] == "no"
    blocks = answer.text.split("\n\n")
    assert blocks.pop() == ""
    for number, block in enumerate(blocks, 1):
        head, data = block.split("\ndata:")
        assert head == f"id:{number}\nevent:result\n:HTTP_STATUS/200"
        assert data.splitlines() == [data]  # one line in every reader's eyes
    seen = frames(answer.text)
    choices = [frame["output"]["choices"][0] for frame in seen]
    assert "".join(choice["message"]["content"] for choice in choices) == "Hé\u2028 there"
    assert [choice["finish_reason"] for choice in choices] == ["null"] * (len(choices) - 1) + ["stop"]
    assert choices[-1]["message"] == {"role": "assistant", "content": ""}
    assert {frame["request_id"] for frame in seen} == {answer.headers["x-request-id"]}
    counts = [frame["usage"]["output_tokens"] for frame in seen]
    assert counts == sorted(counts) and "[DONE]" not in answer.text


def test_accept_header_streams_too(http: httpx.Client) -> None:
    answer = http.post(NATIVE, json=native(), headers={"Accept": "text/event-stream"})
    texts = [frame["output"]["text"] for frame in frames(answer.text)]
    assert texts[-1] == "Hello there, friend." and all(texts[-1].startswith(text) for text in texts)


def test_chat_stream_on_the_wire(http: httpx.Client) -> None:
    body = chat(stream=True, stream_options={"include_usage": True})
    answer = http.post(CHAT, json=body)
    assert answer.text.endswith("data: [DONE]\n\n")
    chunks = frames(answer.text)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-2]["choices"][0] | {"logprobs": None} == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "stop",
    }
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["completion_tokens"] > 3
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert chunks[0]["id"] == "chatcmpl-" + answer.headers["x-request-id"]
    without = frames(http.post(CHAT, json=chat(stream=True)).text)
    assert all("usage" not in chunk and chunk["choices"] for chunk in without)


@pytest.mark.parametrize(
    "path", [f"/compatible-mode/v1{NATIVE[7:]}", f"/v1{NATIVE[7:]}", f"//api/v1/{NATIVE[7:]}/"]
)
def test_native_aliases(http: httpx.Client, path: str) -> None:
    answer = http.request("POST", httpx.URL(str(http.base_url).rstrip("/") + path), json=native())
    assert answer.json()["output"]["text"] == "Hello there, friend."


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1//chat/completions/", CHAT])
def test_compat_bases(http: httpx.Client, path: str) -> None:
    answer = http.post(path, json=chat()).json()
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "Hello there, friend."}
    assert answer["object"] == "chat.completion" and answer["model"] == "tiny-instruct"


def test_models(http: httpx.Client) -> None:
    listed = http.get("/v1/models").json()["data"]
    assert [entry["id"] for entry in listed] == [
        "tiny-base",
        "tiny-instruct",
        "tiny-thinking",
        "qwen3-next-80b-a3b-base",
        "qwen3-next-80b-a3b-instruct",
        "qwen3-next-80b-a3b-thinking",
    ]
    assert listed[4] == {
        "id": "qwen3-next-80b-a3b-instruct",
        "object": "model",
        "created": CREATED,
        "owned_by": "qnext",
        "checkpoint": "tiny-instruct",
    }
    assert http.get("/compatible-mode/v1/models/tiny-base").json()["id"] == "tiny-base"
    missing = http.get("/v1/models/no/such")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"
    page = http.get("/api/v1/models", params={"page_no": 2, "page_size": 4}).json()["output"]
    assert (page["total"], page["page_no"], page["page_size"], len(page["models"])) == (6, 2, 4, 2)
    one = http.get("/api/v1/models", params={"model": "tiny-base", "page_no": 1, "page_size": 1}).json()
    assert [entry["model"] for entry in one["output"]["models"]] == ["tiny-base"]
    assert http.get("/api/v1/models?page_no=x").json()["code"] == "InvalidParameter"


def test_aliases_echo_the_name_asked_for(http: httpx.Client) -> None:
    assert http.post(CHAT, json=chat("qwen3-next-80b-a3b-instruct")).json()["model"] == (
        "qwen3-next-80b-a3b-instruct"
    )


def test_tokenizer_route(http: httpx.Client, live: Live) -> None:
    def count(**given: Any) -> dict[str, Any]:
        body: dict[str, Any] = http.post(
            "/api/v1/tokenizer", json={"model": "tiny-instruct", "input": given}
        ).json()
        return body

    body = count(prompt="the weather <|im_end|>")
    assert "".join(body["output"]["tokens"]) == "the weather <|im_end|>"
    assert body["output"]["token_ids"] == live.instruct.tokenizer.encode("the weather <|im_end|>")
    assert body["usage"] == {"input_tokens": len(body["output"]["token_ids"])}
    whole = count(messages=HI)
    used = http.post(NATIVE, json=native()).json()["usage"]["input_tokens"]
    assert whole["usage"]["input_tokens"] == used and whole["output"]["tokens"][0] == "<|im_start|>"
    assert count(prompt="")["code"] == "InvalidParameter" and count()["code"] == "InvalidParameter"


@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer sk-wrong"}, {"Authorization": "Basic eA=="}, {"X-DashScope-API-Key": "x"}],
)
def test_bad_keys(live: Live, headers: dict[str, str]) -> None:
    huge = b"x" * (2**20 + 1)
    for content in (b"{}", huge):
        answer = httpx.post(live.url + NATIVE, headers=headers, content=content)
        assert answer.status_code == 401 and answer.json()["code"] == "InvalidApiKey"
    assert answer.json()["message"].startswith("Invalid API-key provided.")
    assert live.url + "/api/v1" in answer.json()["message"]
    compat = httpx.post(live.url + CHAT, headers=headers, content=b"{}")
    error = compat.json()["error"]
    assert compat.status_code == 401 and error["code"] == "invalid_api_key"
    assert error["type"] == "invalid_request_error" and "Incorrect API key provided" in error["message"]
    assert compat.json()["request_id"] == compat.headers["x-request-id"]
    assert httpx.get(live.url + "/v1/models", headers=headers).status_code == 401
    assert httpx.get(live.url + "/api/v1/models", headers=headers).status_code == 401


def test_dashscope_key_header_is_heard_without_authorization(live: Live) -> None:
    good = {"X-DashScope-API-Key": live.key}
    assert httpx.post(live.url + NATIVE, headers=good, json=native()).status_code == 200
    both = good | {"Authorization": "Bearer sk-wrong"}
    assert httpx.post(live.url + NATIVE, headers=both, json=native()).status_code == 401


def test_revoked_key_is_refused_at_once(live: Live) -> None:
    key, secret = live.keys.create("short-lived")
    headers = {"Authorization": f"Bearer {secret}"}
    assert httpx.get(live.url + "/v1/models", headers=headers).status_code == 200
    live.keys.revoke(key.id)
    assert httpx.get(live.url + "/v1/models", headers=headers).status_code == 401


BAD_BODIES = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'{"model": NaN}',
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"a": ' + b"9" * 5000 + b"}",
]


@pytest.mark.parametrize("body", BAD_BODIES, ids=range(len(BAD_BODIES)))
def test_bad_json(http: httpx.Client, body: bytes) -> None:
    for path in (NATIVE, CHAT, COMPLETIONS, "/api/v1/tokenizer"):
        answer = http.post(path, content=body)
        assert answer.status_code == 400, path
        message = answer.json()["message"] if path.startswith("/api") else answer.json()["error"]["message"]
        assert message == "Required body invalid, please check the request body format."


def test_too_large_bodies(http: httpx.Client) -> None:
    native_answer = http.post(NATIVE, content=b" " * 2**23)
    assert native_answer.status_code == 413 and native_answer.json()["code"] == "BadRequest.TooLarge"
    chunked = http.post(CHAT, content=iter([b" " * 2**18] * 40))
    assert chunked.status_code == 413 and chunked.json()["error"]["code"] == "request_too_large"


def test_model_is_checked_before_parameters(http: httpx.Client) -> None:
    answer = http.post(NATIVE, json=native("gpt-9", temperature=9))
    assert answer.status_code == 404 and answer.json()["code"] == "ModelNotFound"
    compat = http.post(CHAT, content=json.dumps(chat("gpt-9\ud800", temperature=9)))
    assert compat.status_code == 404
    assert compat.json()["error"]["message"] == (
        "The model `gpt-9?` does not exist or you do not have access to it."
    )
    assert http.post(NATIVE, json={"input": {}}).json()["message"] == (
        'Required parameter "model" missing from request.'
    )
    assert http.post(CHAT, json={"model": None}).json()["error"]["message"] == (
        "you must provide a model parameter"
    )


def test_lone_surrogates_in_messages_are_harmless(http: httpx.Client) -> None:
    raw = b'{"model": "tiny-instruct", "messages": [{"role": "user", "content": "a\\ud800b \\ud83d\\ude00"}]}'
    assert http.post(CHAT, content=raw).status_code == 200


def test_unknown_urls_and_methods(live: Live) -> None:
    answer = httpx.post(live.url + "/api/v1/services/aigc/no-such-task/generation")
    assert answer.status_code == 404
    assert answer.json() == {
        "code": "InvalidURL",
        "message": "url error, please check url！",
        "request_id": answer.headers["x-request-id"],
    }
    for path in ("/", "/v1/nothing", "/compatible-mode/v1"):
        compat = httpx.get(live.url + path)
        assert compat.status_code == 404 and compat.json()["error"]["code"] == "not_found"
    for path in (NATIVE, CHAT):
        wrong = httpx.get(live.url + path)
        assert wrong.status_code == 405 and wrong.headers["allow"] == "POST"
        assert wrong.json()["request_id"] == wrong.headers["x-request-id"]


def test_refused_headers(http: httpx.Client) -> None:
    for headers in ({"X-DashScope-EncryptionKey": "{}"}, {"X-DashScope-Async": "enable"}):
        answer = http.post(NATIVE, json=native(), headers=headers)
        assert answer.status_code == 400 and answer.json()["code"] == "InvalidParameter"
    ignored = {
        "X-DashScope-WorkSpace": "w",
        "X-DashScope-DataInspection": "enable",
        "X-DashScope-Plugin": "{}",
    }
    assert http.post(NATIVE, json=native(), headers=ignored).status_code == 200


def test_prompt_too_long(http: httpx.Client, live: Live) -> None:
    text = "今天 " * CONTEXT
    body = {"model": "tiny-instruct", "input": {"prompt": text}}
    for headers in ({}, SSE):
        answer = http.post(NATIVE, json=body, headers=headers)
        assert answer.status_code == 400
        assert answer.json()["message"] == f"Range of input length should be [1, {CONTEXT - 1}]"
    error = http.post(CHAT, json=chat(messages=[{"role": "user", "content": text}], stream=True)).json()[
        "error"
    ]
    assert error["message"].startswith(
        f"Range of input length should be [1, {CONTEXT - 1}]. "
        f"This model's maximum context length is {CONTEXT} tokens;"
    )
    assert error["code"] == "invalid_parameter_error"
    assert http.post(COMPLETIONS, json={"model": "tiny-base", "prompt": ""}).status_code == 400
    assert not live.instruct.requests


def test_prompts_are_remembered_for_their_own_key(http: httpx.Client, live: Live) -> None:
    other, secret = live.keys.create("other")
    for path, body in (
        (NATIVE, native()),
        (CHAT, chat()),
        (COMPLETIONS, {"model": "tiny-base", "prompt": "x"}),
    ):
        assert http.post(path, json=body).status_code == 200
        assert http.post(path, json=body, headers={"Authorization": f"Bearer {secret}"}).status_code == 200
    salts = [request.cache_salt for request in (*live.instruct.requests, *live.base.requests)]
    mine = live.keys.verify(live.key)
    assert mine is not None and salts == [str(mine.id), str(other.id)] * 3
