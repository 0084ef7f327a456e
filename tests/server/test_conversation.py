from __future__ import annotations

from typing import Any

import pytest

from qnext.server.conversation import conversation, history
from qnext.server.errors import ApiError
from qnext.text.messages import Message, ToolCall

from .test_validation import BASE, INSTRUCT, THINKING

USER = {"role": "user", "content": "Hi"}
CALLS = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
ROLES = "['system', 'assistant', 'user', 'tool', 'function']"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "[] is too short - 'messages'"),
        ("Hi", "'messages' must be a list"),
        (["Hi"], "messages[0] must be an object"),
        ([USER, {"role": "bot", "content": "x"}], f"bot is not one of {ROLES} - 'messages.['1].role'"),
        ([{"content": "x"}], f"None is not one of {ROLES} - 'messages.['0].role'"),
        ([{"role": ["user"], "content": "x"}], "['user'] is not one of"),
        ([{"role": "system", "content": "x"}], "Role must be user or assistant and Content length must be"),
        ([{"role": "user", "content": ""}], "Role must be user or assistant and Content length must be"),
        ([{"role": "user", "content": []}], "Role must be user or assistant and Content length must be"),
        ([{"role": "user"}], "The content field is a required field."),
        ([USER, {"role": "assistant", "content": None}], "The content field is a required field."),
        ([{"role": "user", "content": 3}], "input content must be a string."),
        ([{"role": "user", "content": {"text": "x"}}], "input content must be a string."),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "input content must be a string."),
        ([{"role": "user", "content": [{"image": "x"}]}], "input content must be a string."),
        (
            [USER, {"role": "tool", "content": "x"}],
            'messages with role "tool" must be a response to a preceeding',
        ),
        (
            [USER, {"role": "assistant", "content": "x"}, {"role": "tool", "content": "x"}],
            'messages with role "tool" must be a response to a preceeding message with "tool_calls".',
        ),
        ([USER, {"role": "assistant", "tool_calls": [{}]}], "messages[1].tool_calls[0].function is missing"),
        (
            [{"role": "user", "content": "x", "partial": True}],
            "messages[0]: partial is set on a user message",
        ),
        (
            [{"role": "assistant", "content": "x", "partial": True}, USER],
            "partial is possible only with the last",
        ),
    ],
)
def test_refused(messages: Any, message: str) -> None:
    with pytest.raises(ApiError) as caught:
        conversation(messages, INSTRUCT)
    assert caught.value.status == 400 and caught.value.message.startswith(message)


def test_a_whole_conversation() -> None:
    read = conversation(
        [
            {"role": "developer", "content": "Be kind."},
            {
                "role": "user",
                "content": [
                    {"text": "a", "cache_control": {"type": "ephemeral"}},
                    {"type": "text", "text": "b"},
                ],
            },
            {"role": "assistant", "content": None, "tool_calls": CALLS, "reasoning_content": "hm"},
            {"role": "tool", "content": "1", "tool_call_id": "c"},
            {"role": "tool", "content": [{"type": "text", "text": "2"}]},
            {"role": "function", "content": "3"},
            {"role": "assistant", "content": "Beg", "partial": True},
        ],
        INSTRUCT,
    )
    assert read.messages == (
        Message("system", "Be kind."),
        Message("user", "ab"),
        Message("assistant", "", "hm", (ToolCall("c", "f", "{}"),)),
        Message("tool", "1", tool_call_id="c"),
        Message("tool", "2"),
        Message("tool", "3"),
        Message("assistant", "Beg", partial=True),
    )


def test_what_a_model_cannot_do() -> None:
    with pytest.raises(ApiError, match="partial is possible only with models that do not think"):
        conversation([USER, {"role": "assistant", "content": "x", "partial": True}], THINKING)
    with pytest.raises(ApiError, match="no chat template"):
        conversation([USER], BASE)


def test_history() -> None:
    turns = history([{"user": "a", "bot": "b"}], "c")
    assert [turn["content"] for turn in turns] == ["a", "b", "c"]
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
    with pytest.raises(ApiError, match="history"):
        history(["a"], "c")
