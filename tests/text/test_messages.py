from __future__ import annotations

import sys
from typing import Any

import pytest

from qnext.text.messages import Message, ToolCall, json_object


def test_from_dict_reads_the_wire_shape() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}}
    wire = {"role": "assistant", "content": None, "reasoning_content": "hm", "tool_calls": [call]}
    assert Message.from_dict(wire) == Message("assistant", "", "hm", (ToolCall("call_1", "f", '{"x":1}'),))
    parts = [{"type": "text", "text": "a"}, {"text": "b", "cache_control": {"type": "ephemeral"}}]
    assert Message.from_dict({"role": "user", "content": parts, "name": "x"}) == Message("user", "ab")
    result = {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "4"}]}
    assert Message.from_dict(result) == Message("tool", "4", tool_call_id="call_1")
    prefix = {"role": "assistant", "content": "So", "partial": True}
    assert Message.from_dict(prefix) == Message("assistant", "So", partial=True)


def test_from_dict_translates_roles_and_arguments() -> None:
    assert Message.from_dict({"role": "developer", "content": "x"}).role == "system"
    assert Message.from_dict({"role": "function", "content": "x"}).role == "tool"
    for arguments, text in ((None, "{}"), ({"a": "é"}, '{"a": "é"}'), ("not json", "not json")):
        wire = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
        assert Message.from_dict(wire).tool_calls == (ToolCall("", "f", text),)


@pytest.mark.parametrize(
    ("wire", "says"),
    [
        ("hello", "m is str"),
        ({"content": "x"}, "m: role is None"),
        ({"role": ["user"], "content": "x"}, "m: role is"),
        ({"role": "robot", "content": "x"}, "m: role is 'robot'"),
        ({"role": "user"}, "m.content is NoneType"),
        ({"role": "user", "content": 3}, "m.content is int"),
        ({"role": "user", "content": [{"type": "image_url"}]}, r"m.content\[0\] is of type 'image_url'"),
        ({"role": "user", "content": ["x"]}, r"m.content\[0\] is of type 'str'"),
        ({"role": "user", "content": [{"type": "text"}]}, r"m.content\[0\].text"),
        ({"role": "user", "content": "x", "partial": True}, "m: partial is set on a user message"),
        ({"role": "assistant", "content": "x", "partial": "yes"}, "m.partial is str"),
        ({"role": "assistant", "content": "x", "reasoning_content": 1}, "m.reasoning_content is int"),
        ({"role": "tool", "content": "x", "tool_call_id": 1}, "m.tool_call_id is int"),
        ({"role": "assistant", "tool_calls": {}, "content": 1}, "m.content is int"),
        ({"role": "assistant", "tool_calls": "f"}, "m.tool_calls is str"),
        ({"role": "assistant", "tool_calls": [{}]}, r"m.tool_calls\[0\].function is missing"),
        ({"role": "assistant", "tool_calls": [{"function": {}}]}, r"m.tool_calls\[0\].function.name"),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": 1}}]},
            r"m.tool_calls\[0\].function.arguments is int",
        ),
        (
            {"role": "assistant", "tool_calls": [{"id": 1, "function": {"name": "f"}}]},
            r"m.tool_calls\[0\].id is int",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f"}}], "partial": True},
            "m: partial is set on a message with tool_calls",
        ),
    ],
)
def test_from_dict_names_what_is_wrong(wire: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Message.from_dict(wire, "m")


def test_message_refuses_what_no_role_has() -> None:
    with pytest.raises(ValueError, match="tool_calls is set on a user message"):
        Message("user", tool_calls=(ToolCall("", "f", "{}"),))
    with pytest.raises(ValueError, match="content is list"):
        Message("user", [])  # type: ignore[arg-type]


def test_json_object_is_strict() -> None:
    assert json_object(' {"a": [1, 2.5]}\n') == {"a": [1, 2.5]}
    for text in ("", "[1]", "3", '{"a": NaN}', '{"a": 1', "[" * 100_000, '{"a": ' * 100_000):
        assert json_object(text) is None
    big = sys.float_info.max
    assert json_object('{"a": [1e999, -2.5E400, 1e-999]}') == {"a": [big, -big, 0.0]}
    long, longer = "9" * 400, "9" * 5000
    assert json_object(f'{{"a": [{longer}, -{longer}, {long}]}}') == {"a": [big, -big, int(long)]}
