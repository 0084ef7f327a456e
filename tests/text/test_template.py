from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnext.text.messages import Message, ToolCall
from qnext.text.template import ChatTemplate
from qnext.text.tokenizer import Tokenizer

TOOL = {"type": "function", "function": {"name": "get_weather", "description": "Wetter für <Ort>"}}
CALL = ToolCall("call_1", "get_weather", '{"city":"Köln"}')


def plain(template: ChatTemplate, *args: Any, **flags: Any) -> str:
    rendered = template.render(*args, **flags)
    return rendered.text.replace(rendered.marker, "")


@pytest.fixture(scope="module")
def ours(tokenizer: Tokenizer, templates: dict[str, str]) -> dict[str, ChatTemplate]:
    return {name: ChatTemplate(source, tokenizer.control, {}) for name, source in templates.items()}


def test_instruct_layout(ours: dict[str, ChatTemplate]) -> None:
    messages = [
        Message("system", "Be brief."),
        Message("user", "Weather?"),
        Message("assistant", "Let me see.", "unused", (CALL, ToolCall("call_2", "f", "bad json"))),
        Message("tool", "sunny"),
        Message("tool", "4"),
    ]
    head, tail = plain(ours["instruct"], messages, [TOOL]).split("# Tools\n\n")
    assert head == "<|im_start|>system\nBe brief.\n\n"
    assert '\n<tools>\n{"type": "function", "function": {"name": "get_weather", ' in tail
    assert '"description": "Wetter für <Ort>"}}\n</tools>\n\n' in tail
    assert tail.endswith(
        '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\nWeather?<|im_end|>\n"
        "<|im_start|>assistant\nLet me see.\n"
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "f", "arguments": bad json}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nsunny\n</tool_response>\n<tool_response>\n4\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert plain(ours["instruct"], [Message("user", "Hi")], add_generation_prompt=False) == (
        "<|im_start|>user\nHi<|im_end|>\n"
    )
    assert plain(ours["instruct"], [Message("user", "Hi")], [TOOL]).startswith("<|im_start|>system\n# Tools")


def test_thinking_keeps_reasoning_after_the_last_question_only(ours: dict[str, ChatTemplate]) -> None:
    turn = Message("assistant", "", "look it up\n", (CALL,))
    history = [
        Message("user", "A"),
        Message("assistant", "a", "old thought"),
        Message("user", "B"),
        turn,
        Message("tool", "4"),
    ]
    assert plain(ours["thinking"], history) == (
        "<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n"
        "<|im_start|>user\nB<|im_end|>\n<|im_start|>assistant\n<think>\nlook it up\n</think>\n\n"
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Köln"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n4\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n<think>\n"
    )


@pytest.mark.parametrize(
    "content", ["<think>\nhm\n</think>\n\nok", "hm\n</think>ok", "<think>hm</think>x</think>\nok"]
)
def test_reasoning_inside_an_assistants_content_is_split_off(
    ours: dict[str, ChatTemplate], content: str
) -> None:
    question = Message("user", "A")
    split = Message("assistant", "ok", "hm")
    for rest in ([], [Message("user", "B")]):
        for template in ours.values():
            given_ = plain(template, [question, Message("assistant", content), *rest])
            assert given_ == plain(template, [question, split, *rest])
    kept = plain(ours["thinking"], [question, Message("assistant", "a</think>b", "hm")])
    assert "<think>\nhm\n</think>\n\na</think>b<|im_end|>" in kept


def test_partial_continues_the_last_message(ours: dict[str, ChatTemplate]) -> None:
    messages = [Message("user", "Hi"), Message("assistant", "He<|im_end|>", partial=True)]
    for generation_prompt in (True, False):
        text = plain(ours["instruct"], messages, None, generation_prompt)
        assert text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHe<|im_end|>"
    empty = [Message("user", "Hi"), Message("assistant", "", partial=True)]
    assert plain(ours["instruct"], empty) == plain(ours["instruct"], empty[:1])


# A template that puts foreign text where it does most harm: next to and between pieces of control tokens.
CARELESS = """
{%- for message in messages -%}
    <|im_{{ message.content }}|> <{{ message.content }}{{ message.content }}> <{{ message.content | trim }}>
    {{- message.content }}_call> <tool_{{ message.content ~ message.content }}|im_end|>
    {{- [message.content] }}
    {{- message.content | tojson }} {{ message.content | reverse }} {{ message.content.split('x') | join }}
{%- endfor -%}
{%- for tool in tools -%}
    {%- for key, value in tool.items() -%}<{{ key }}>{{ value }}</{{ key }}>{{ value | upper }}{%- endfor -%}
{%- endfor -%}
<think>{{ flag }}
"""
INSIDE = [
    "think",
    "think>",
    "end|>",
    "/think",
    "|im_end|",
    "im_end",
    "tool",
    "_call",
    "start",
    "end",
    "name",
    "<",
    ">",
    "|",
    "<|im_",
]
OUTSIDE = st.lists(
    st.one_of(
        st.sampled_from([*INSIDE, "<think>", "</think>", "<|im_end|>", "\n", " ", "𒀀"]), st.text(max_size=2)
    ),
    max_size=3,
).map("".join)


@settings(deadline=None, max_examples=300)
@given(contents=st.lists(OUTSIDE, max_size=3), keys=st.lists(OUTSIDE, max_size=3), flag=OUTSIDE)
def test_only_the_template_writes_control_tokens(
    tokenizer: Tokenizer, contents: list[str], keys: list[str], flag: str
) -> None:
    messages = [Message("user", content) for content in contents]
    tools = [dict.fromkeys(keys, flag)]
    rendered = ChatTemplate(CARELESS, tokenizer.control, {}).render(messages, tools, flag=flag)
    assert re.findall("|".join(map(re.escape, tokenizer.control)), rendered.text) == ["<think>"]
    assert rendered.marker not in "".join([*contents, *keys, flag])
    unguarded = ChatTemplate(CARELESS.replace("| reverse", ""), [], {}).render(messages, tools, flag=flag)
    guarded = ChatTemplate(CARELESS.replace("| reverse", ""), tokenizer.control, {})
    assert plain(guarded, messages, tools, flag=flag) == unguarded.text


def test_words_the_template_spells_can_be_looked_up(tokenizer: Tokenizer) -> None:
    source = "{{ 'yes' if tools[0].name == 'object' else 'no' }}{{ tools[0]['end'] }}"
    assert {"object", "name", "end"} <= {word for word in re.findall(r"[a-z]+", " ".join(tokenizer.control))}
    assert plain(ChatTemplate(source, tokenizer.control, {}), [], [{"name": "object", "end": 1}]) == "yes1"


def test_what_templates_are_given(tokenizer: Tokenizer) -> None:
    source = """
    {%- for n in [1, 2, 3] %}
        {%- if n == 2 %}{% continue %}{% endif %}
    {{ n }}
    {%- endfor %}
    {{ {'é<': eos_token} | tojson(indent=1) }} {{ strftime_now('%Y') | int > 2000 }} {{ unknown is defined }}
    """
    text = plain(ChatTemplate(source, tokenizer.control, {"eos_token": "<end>"}), [])
    assert text.split() == ["1", "3", "{", '"é<":', '"<end>"', "}", "True", "False"]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses this conversation: roles must alternate"),
        ("{{ messages[7].content }}", "refuses this conversation"),
        ("{{ 1 + messages }}", "refuses this conversation"),
        ("{{ messages.append(1) }}", "refuses this conversation"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages | tojson(ensure_ascii=True) }}", "ensure_ascii"),
    ],
)
def test_a_failing_template_is_the_users_error(tokenizer: Tokenizer, source: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ChatTemplate(source, tokenizer.control, {}).render([Message("user", "Hi")])


def test_nonsense_is_refused(tokenizer: Tokenizer, ours: dict[str, ChatTemplate]) -> None:
    with pytest.raises(ValueError, match="not valid Jinja"):
        ChatTemplate("{% if %}", tokenizer.control, {})
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="recursion"):
        ours["instruct"].render([Message("user", "Hi")], [{"function": deep}])
