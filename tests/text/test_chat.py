from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from qnext.text.chat import Chat, Prompt
from qnext.text.events import ContentDelta, Finish, ToolCallDelta
from qnext.text.messages import Message, ToolCall

TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": "Größe <b>", "parameters": {}}}
]
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Köln"}'},
}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Why is the sky blue?"}],
    [{"role": "system", "content": "Be brief.\n"}, {"role": "user", "content": "a < b > c 👍🏽\n\n"}],
    [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "sunny", "tool_call_id": "call_1"},
        {"role": "tool", "content": "今天天气很好", "tool_call_id": "call_1"},
    ],
    [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": "2", "reasoning_content": "easy"},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4", "reasoning_content": "\nharder\n"},
    ],
]


@pytest.mark.parametrize("variant", ["instruct", "thinking"])
def test_prompts_equal_those_of_transformers(checkpoint: Callable[[str], Path], variant: str) -> None:
    folder = checkpoint(variant)
    chat, theirs = Chat.from_pretrained(folder), PreTrainedTokenizerFast.from_pretrained(folder)
    for messages in CONVERSATIONS:
        given_ = json.loads(json.dumps(messages))
        for message in given_:
            for call in message.get("tool_calls", []):  # transformers wants objects where the wire has text
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        for tools in (None, TOOLS):
            for generation in (True, False):
                expected = theirs.apply_chat_template(
                    given_, tools=tools, add_generation_prompt=generation, tokenize=True, return_dict=False
                )
                prompt = chat.encode(messages, tools, add_generation_prompt=generation)
                assert list(prompt.ids) == expected
                assert prompt.thinking == (variant == "thinking" and generation)


PIECES = [
    "<think>",
    "</think>",
    "<|im_end|>",
    "<tool_call>",
    "<|im_",
    "start|>",
    "<",
    ">",
    "_call>",
    "end",
    "\n",
    "ä",
]
HOSTILE = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=3)), max_size=4).map("".join)


def _conversation(words: list[str]) -> tuple[list[Message], list[dict[str, Any]]]:
    system, user, answer, thought, name, key, value, result, tool = words
    calls = (ToolCall("", name, json.dumps({key: value})), ToolCall("", "f", value))
    messages = [
        Message("system", system),
        Message("user", user),
        Message("assistant", answer, thought, calls),
        Message("tool", result),
        Message("user", result),
        Message("assistant", user, thought),
        Message("assistant", answer, partial=True),
    ]
    return messages, [{"type": "function", "function": {"name": name, key: tool, "enum": [value]}}]


@pytest.mark.parametrize("variant", ["instruct", "thinking"])
@settings(deadline=None, max_examples=150)
@given(words=st.lists(HOSTILE, min_size=9, max_size=9))
def test_control_tokens_cannot_be_injected(chats: dict[str, Chat], variant: str, words: list[str]) -> None:
    chat = chats[variant]
    messages, tools = _conversation(words)
    harmless, harmless_tools = _conversation(["x" if word else "" for word in words])
    if variant == "thinking":
        messages, harmless = messages[:-1], harmless[:-1]
    ids = chat.encode(messages, tools).ids
    expected = chat.encode(harmless, harmless_tools).ids
    control = chat.tokenizer.control_ids
    assert [i for i in ids if i in control] == [i for i in expected if i in control]
    text = unicodedata.normalize("NFC", chat.tokenizer.decode(ids, skip_control=False))
    for content in (*words[:3], words[7]):
        assert unicodedata.normalize("NFC", content.strip("\n")) in text


def test_prompt_knows_whether_it_reasons(chats: dict[str, Chat]) -> None:
    question = [Message("user", "<think>")]
    assert (
        chats["thinking"].is_thinking and not chats["instruct"].is_thinking and not chats["base"].is_thinking
    )
    prompt = chats["thinking"].encode(question)
    assert prompt.thinking and not chats["instruct"].encode(question).thinking
    control = chats["thinking"].tokenizer.control
    end, close = chats["thinking"].reasoning(prompt) or (0, ())
    assert end == control["</think>"] and end in close
    assert chats["thinking"].tokenizer.decode(close, skip_control=False) == "\n</think>\n\n"
    assert chats["instruct"].reasoning(chats["instruct"].encode(question)) is None


def test_enable_thinking_reaches_hybrid_templates(checkpoint: Callable[[str], Path]) -> None:
    folder = checkpoint("instruct")
    source = "<think>{% if enable_thinking is defined and not enable_thinking %}</think>{% endif %}"
    (folder / "chat_template.jinja").write_text(source, encoding="utf-8")
    chat, question = Chat.from_pretrained(folder), [Message("user", "x")]
    assert chat.is_thinking and chat.encode(question, enable_thinking=True).thinking
    assert not chat.encode(question, enable_thinking=False).thinking


def test_partial(chats: dict[str, Chat]) -> None:
    assert chats["instruct"].encode([{"role": "user", "content": "x"}]).begun == ""
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hel", "partial": True},
    ]
    ids = chats["instruct"].encode(messages).ids
    assert chats["instruct"].tokenizer.decode(ids, skip_control=False).endswith("<|im_start|>assistant\nHel")
    with pytest.raises(ValueError, match="partial is set, but this model reasons"):
        chats["thinking"].encode(messages)
    with pytest.raises(ValueError, match="only the last"):
        chats["instruct"].encode(messages[::-1])


def test_boundaries_are_where_contents_begin(chats: dict[str, Chat]) -> None:
    for variant in ("instruct", "thinking"):
        chat = chats[variant]
        for messages in CONVERSATIONS:
            prompt = chat.encode(messages, TOOLS)
            assert prompt.boundaries == tuple(sorted(set(prompt.boundaries)))
            heads = [chat.tokenizer.decode(prompt.ids[:n], skip_control=False) for n in prompt.boundaries]
            whole = chat.tokenizer.decode(prompt.ids, skip_control=False)
            assert len(heads) == whole.count("<|im_start|>") - whole.count("<|im_start|>user\n\n")
            for head in heads:
                last = head.rpartition("<|im_start|>")[2]
                assert last in ("system\n", "user\n", "assistant\n")
            tail = whole[len(heads[-1]) :]
            assert tail == ("<think>\n" if variant == "thinking" else "")
    assert chats["base"].encode_text("<|im_start|>user\n").boundaries == ()


def test_tool_choice_none_leaves_the_tools_out(chats: dict[str, Chat]) -> None:
    question, chat = [Message("user", "x")], chats["instruct"]
    assert chat.encode(question, TOOLS, tool_choice="none") == chat.encode(question)
    assert (
        chat.encode(question, TOOLS, tool_choice="auto")
        == chat.encode(question, TOOLS)
        != chat.encode(question)
    )


def test_raw_text_and_base_models(chats: dict[str, Chat]) -> None:
    prompt = chats["base"].encode_text("<|im_start|>a")
    assert prompt == Prompt(tuple(chats["base"].tokenizer.encode("<|im_start|>a")), raw=True)
    assert not chats["base"].has_template and chats["instruct"].has_template
    with pytest.raises(ValueError, match="no chat template"):
        chats["base"].encode([Message("user", "x")])


def test_wrong_messages_are_named(chats: dict[str, Chat]) -> None:
    with pytest.raises(ValueError, match="messages is empty"):
        chats["instruct"].encode([])
    with pytest.raises(ValueError, match=r"messages\[1\]\.content"):
        chats["instruct"].encode([{"role": "user", "content": "x"}, {"role": "user"}])


def test_parsers_are_made_for_the_prompt(chats: dict[str, Chat]) -> None:
    chat = chats["thinking"]
    answer = chat.tokenizer.encode_trusted(
        'hm\n</think>\n\nok <tool_call>{"name": "f"}</tool_call><|im_end|>'
    )
    parser = chat.parser(chat.encode([Message("user", "x")]), tools=TOOLS, max_calls=1)
    events = parser.feed(answer)
    assert [getattr(event, "text", None) for event in events] == ["hm", "ok", None]
    assert isinstance(events[2], ToolCallDelta) and events[2].call.id.startswith("call_")
    assert len(events[2].call.id) == len("call_") + 22 and parser.stopped
    raw = chat.parser(chat.encode_text("x"), "z", TOOLS, stop_token_ids=chat.tokenizer.encode("!"))
    plain = raw.feed([*answer, *chat.tokenizer.encode("yz!")])
    (delta,) = plain
    assert isinstance(delta, ContentDelta) and raw.stopped
    assert delta.text == 'hm\n</think>\n\nok <tool_call>{"name": "f"}</tool_call>y'
    other = chat.parser(chat.encode_text("x"), stop_token_ids=chat.tokenizer.encode("!"))
    assert other.feed(chat.tokenizer.encode("a!")) + other.finish("stop") == [
        ContentDelta("a", tuple(chat.tokenizer.encode("a"))),
        Finish("stop"),
    ]


def _rewritten(folder: Path, file: str, content: dict[str, Any] | None) -> Chat:
    (folder / file).unlink(missing_ok=True)
    if content is not None:
        (folder / file).write_text(json.dumps(content), encoding="utf-8")
    return Chat.from_pretrained(folder)


def test_defaults_and_ends(checkpoint: Callable[[str], Path]) -> None:
    folder, file = checkpoint("instruct"), "generation_config.json"
    chat = Chat.from_pretrained(folder)
    im_end, end = (chat.tokenizer.control[text] for text in ("<|im_end|>", "<|endoftext|>"))
    assert chat.defaults == {"temperature": 0.7, "top_k": 20} and chat.eos_token_ids == (im_end, end)
    greedy = _rewritten(folder, file, {"eos_token_id": end, "do_sample": False, "top_p": 0.5, "min_p": None})
    assert greedy.defaults == {"temperature": 0.0, "top_p": 0.5} and greedy.eos_token_ids == (end, im_end)
    assert _rewritten(folder, file, None).eos_token_ids == (im_end,)
    assert _rewritten(folder, "config.json", {"eos_token_id": end}).eos_token_ids == (end, im_end)
    (folder / "tokenizer_config.json").unlink()
    assert _rewritten(folder, "config.json", {"eos_token_id": 7}).eos_token_ids == (7,)
    with pytest.raises(ValueError, match="names no end-of-answer token"):
        _rewritten(folder, "config.json", None)
