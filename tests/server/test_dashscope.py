"""Native frames and bodies, to the letter."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qnext.server.dashscope import NativeReply, models, parse, parse_tokenizer, read_input
from qnext.server.errors import ApiError
from qnext.server.exchange import Answer, ChatEvent, Conversation, Logprob, Usage
from qnext.text.messages import Message, ToolCall

from .test_validation import BASE, HI, INSTRUCT, THINKING

USAGE = Usage(10, 6, 2, 4)
SHARE = Usage(10, 3, 1, 4)
CALL = ToolCall("call_1", "f", "{}")
NULLS = ["null", "null"]


def event(index: int = 0, **more: Any) -> ChatEvent:
    return ChatEvent(index, USAGE, SHARE, **more)


def payloads(reply: NativeReply, *events: ChatEvent) -> list[dict[str, Any]]:
    answer, told = Answer(), []
    for each in events:
        answer.add(each)
        told.append(json.loads(reply.frames(each, answer).split(b"data:", 1)[1]))
    return told


def choices(reply: NativeReply, *events: ChatEvent) -> list[dict[str, Any]]:
    return [payload["output"]["choices"][0] for payload in payloads(reply, *events)]


THOUGHT = (event(reasoning="Hm."), event(content="Yes"), event(content="."), event(finish="stop"))


def test_incremental_thinking_frames() -> None:
    told = choices(NativeReply("r", thinking=True), *THOUGHT)
    messages = [choice["message"] for choice in told]
    assert [m["reasoning_content"] for m in messages] == ["Hm.", "", "", ""]
    assert [m["content"] for m in messages] == ["", "Yes", ".", ""]
    assert [m["role"] for m in messages] == ["assistant"] * 4
    assert [choice["finish_reason"] for choice in told] == [*NULLS, "null", "stop"]


def test_cumulative_frames() -> None:
    told = choices(NativeReply("r", incremental=False), *THOUGHT[1:])
    assert [choice["message"] for choice in told] == [
        {"role": "assistant", "content": text} for text in ("Yes", "Yes.", "Yes.")
    ]
    texts = payloads(NativeReply("r", text=True, incremental=False), *THOUGHT[1:])
    assert [payload["output"] for payload in texts] == [
        {"text": "Yes", "finish_reason": "null"},
        {"text": "Yes.", "finish_reason": "null"},
        {"text": "Yes.", "finish_reason": "stop"},
    ]


def test_usage_of_frames() -> None:
    frame = payloads(NativeReply("r"), event(content="x"))[0]
    assert frame["usage"] == {
        "input_tokens": 10,
        "output_tokens": 6,
        "total_tokens": 16,
        "prompt_tokens_details": {"cached_tokens": 4},
        "output_tokens_details": {"reasoning_tokens": 2},
    }
    assert frame["request_id"] == "r"
    many = payloads(NativeReply("r", many=True), event(1, content="x"))[0]
    assert many["usage"]["output_tokens"] == 3 and many["output"]["choices"][0]["index"] == 1


def test_tool_frames() -> None:
    events = (
        event(content="Look"),
        event(call=CALL),
        event(call=ToolCall("call_2", "g", '{"a": 1}')),
        event(finish="tool_calls"),
    )
    told = choices(NativeReply("r"), *events)
    assert "tool_calls" not in told[0]["message"] and "tool_calls" not in told[3]["message"]
    assert told[1]["message"] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"index": 0, "id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        ],
    }
    assert [call["index"] for call in told[2]["message"]["tool_calls"]] == [1]
    whole = choices(NativeReply("r", incremental=False), *events)
    assert [len(choice["message"].get("tool_calls", [])) for choice in whole] == [0, 1, 2, 2]
    assert [call["index"] for call in whole[3]["message"]["tool_calls"]] == [0, 1]
    assert whole[3]["message"]["content"] == "Look" and whole[3]["finish_reason"] == "tool_calls"


def test_bodies() -> None:
    answer = Answer()
    for each in (*THOUGHT, event(1, content="No."), event(1, finish="length")):
        answer.add(each)
    text = NativeReply("r", text=True).body(answer)
    assert text["output"] == {"finish_reason": "stop", "text": "Yes."}
    assert "output_tokens_details" not in text["usage"]
    both = NativeReply("r", text=True, many=True).body(answer)["output"]
    assert both["text"] == "Yes." and [c["index"] for c in both["choices"]] == [0, 1]
    message = NativeReply("r").body(answer)["output"]
    assert list(message) == ["choices"] and message["choices"][1]["message"]["content"] == "No."
    assert message["choices"][1]["finish_reason"] == "length"


def test_logprobs() -> None:
    token = Logprob("é", "é".encode(), -0.25)
    (told,) = choices(NativeReply("r"), event(content="é", logprobs=(token,)))
    assert told["logprobs"] == {
        "content": [{"token": "é", "bytes": [195, 169], "logprob": -0.25, "top_logprobs": []}]
    }


def test_failure_frame() -> None:
    answer = Answer()
    answer.add(event(content="x"))
    frame = NativeReply("r").failure(ApiError("internal", "Sorry"), answer)
    assert frame == (
        b"id:2\nevent:error\n:HTTP_STATUS/500\nstatus:500\n"
        b'data:{"code":"InternalError","message":"Sorry","request_id":"r"}\n\n'
    )


@pytest.mark.parametrize(
    ("rules", "params", "stream", "text", "incremental"),
    [
        (INSTRUCT, {}, True, True, False),
        (INSTRUCT, {"result_format": "message"}, True, False, False),
        (INSTRUCT, {"incremental_output": True}, True, True, True),
        (INSTRUCT, {"tools": [{"function": {"name": "f"}}]}, True, False, False),
        (INSTRUCT, {"incremental_output": False}, False, True, False),
        (THINKING, {}, True, False, True),
        (BASE, {}, True, True, False),
        (BASE, {"result_format": "message"}, False, False, False),
    ],
)
def test_formats_when_left_out(rules: Any, params: Any, stream: bool, text: bool, incremental: bool) -> None:
    body = {"model": "m", "input": {"prompt": "Hi"}, "parameters": params}
    _, reply = parse(body, rules, stream=stream, request_id="r")
    assert (reply.text, reply.incremental, reply.thinking) == (text, incremental, rules.thinking)


def test_input() -> None:
    hello = (Message("user", "Hi"),)
    assert read_input({"prompt": "Hi"}, INSTRUCT) == (Conversation(hello),)
    assert read_input({"prompt": "Hi"}, BASE) == ("Hi",)
    both = read_input({"messages": HI, "prompt": "More"}, INSTRUCT)
    assert both == (Conversation((*hello, Message("user", "More"))),)
    assert read_input({"prompt": ["a", "b"]}, BASE) == ("a", "b")
    for wrong in (None, {}, {"prompt": None, "messages": None}):
        with pytest.raises(
            ApiError, match='Either "prompt" or "messages" must exist and cannot both be none'
        ):
            read_input(wrong, INSTRUCT)
    for wrong in (
        {"prompt": 5},
        {"prompt": []},
        {"prompt": ""},
        {"prompt": ["a"] * 11},
        {"messages": []},
        [],
    ):
        with pytest.raises(ApiError):
            read_input(wrong, INSTRUCT)


def test_tokenizer_input() -> None:
    assert parse_tokenizer({"input": {"prompt": "Hi"}}, INSTRUCT) == "Hi"
    assert parse_tokenizer({"input": {"prompt": "Hi"}}, BASE) == "Hi"
    assert parse_tokenizer({"input": {"messages": HI}}, INSTRUCT) == Conversation((Message("user", "Hi"),))
    history = {"prompt": "c", "history": [{"user": "a", "bot": "b"}]}
    assert isinstance(parse_tokenizer({"input": history}, INSTRUCT), Conversation)


def test_model_pages() -> None:
    names = [(f"m{i}", "tiny") for i in range(12)]
    output = models(names, {}, "r")["output"]
    assert (output["total"], output["page_no"], output["page_size"], len(output["models"])) == (12, 1, 10, 10)
    assert len(models(names, {"page_no": "2"}, "r")["output"]["models"]) == 2
    assert models(names, {"model": "gone"}, "r")["output"]["models"] == []
    for wrong in ("0", "-1", "x", "²", "9" * 50):
        with pytest.raises(ApiError, match="page_size"):
            models(names, {"page_size": wrong}, "r")
