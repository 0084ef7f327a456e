from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from qnext.text.events import ContentDelta, Event, Finish, FinishReason, ReasoningDelta, ToolCallDelta, joined
from qnext.text.messages import ToolCall
from qnext.text.parser import OutputParser, new_call_id
from qnext.text.tokenizer import Tokenizer

Make = Callable[..., OutputParser]
Shown = Callable[[list[Event]], Iterator[Any]]
GOOD = '<tool_call>\n{"name": "f", "arguments": {"x": "é"}}\n</tool_call>'
CALL = ToolCall("call_0", "f", '{"x": "é"}')


@pytest.fixture(scope="session")
def run(tokenizer: Tokenizer, make: Make, shown: Shown) -> Callable[..., list[Any]]:
    """Parses a text, control tokens included; gives ("reasoning" | "content", text), calls and the reason."""

    def parse(text: str, reason: FinishReason = "stop", **options: Any) -> list[Any]:
        parser = make(**options)
        return list(shown(parser.feed(tokenizer.encode_trusted(text)) + parser.finish(reason)))

    return parse


def test_reasoning_then_answer(run: Callable[..., list[Any]]) -> None:
    answer = [("reasoning", "hm,\n\nso"), ("content", "\nok\n"), "stop"]
    assert run("hm,\n\nso\n</think>\n\n\nok\n<|im_end|>", thinking=True) == answer
    assert run("<think>\nhm,\n\nso\n</think>\n\n\nok\n<|im_end|>") == answer
    assert run("\n\n</think>ok", thinking=True) == [("content", "ok"), "stop"]
    assert run("<|fim_pad|></think><think>a", reason="length") == [("reasoning", "a"), "length"]
    assert run("a<think>b</think>c") == [("content", "abc"), "stop"]


def test_reasoning_that_never_ends(run: Callable[..., list[Any]]) -> None:
    assert run("hm\n\n", "length", thinking=True) == [("reasoning", "hm"), "length"]
    assert run("hm", "stop", thinking=True, stop=["m"], tools=True) == [("reasoning", "hm"), "stop"]


def test_tags_are_text_where_they_mean_nothing(run: Callable[..., list[Any]]) -> None:
    assert run("a" + GOOD + "b<|im_end|>") == [("content", "a" + GOOD + "b"), "stop"]
    assert run("a" + GOOD, thinking=True, tools=True) == [("reasoning", "a" + GOOD), "stop"]
    assert run("<think>a</think>b", raw=True) == [("content", "<think>a</think>b"), "stop"]
    assert run("a</tool_call></think>b<|im_start|>", tools=True) == [("content", "ab"), "stop"]


def test_text_that_spells_a_tag_is_no_tag(tokenizer: Tokenizer, make: Make, shown: Shown) -> None:
    parser = make(tools=True)
    events = parser.feed(tokenizer.encode(GOOD)) + parser.finish("stop")
    assert list(shown(events)) == [("content", GOOD), "stop"]


def test_calls(run: Callable[..., list[Any]]) -> None:
    second = ToolCall("call_1", "f", '{"x": "é"}')
    assert run(f"So:\n{GOOD}\n{GOOD}\n<|im_end|>", tools=True) == [
        ("content", "So:"),
        CALL,
        second,
        "tool_calls",
    ]
    assert run(f" \n{GOOD}\n and", tools=True) == [CALL, ("content", "\n and"), "tool_calls"]
    assert run(f"a</think>\n\n{GOOD}\n\nb", thinking=True, tools=True) == [
        ("reasoning", "a"),
        CALL,
        ("content", "\n\nb"),
        "tool_calls",
    ]
    assert run(f"a</think>{GOOD}\n\nb\n", thinking=True, tools=True) == [
        ("reasoning", "a"),
        CALL,
        ("content", "\n\nb\n"),
        "tool_calls",
    ]
    assert run(GOOD, "length", tools=True) == [CALL, "length"]
    assert run(GOOD, "abort", tools=True) == [CALL, "abort"]


@pytest.mark.parametrize(
    ("body", "arguments"),
    [
        ('{"name": "f", "arguments": {}}', "{}"),
        ('{"name": "f"}', "{}"),
        ('{"name": "f", "arguments": "{\\"x\\":1}"}', '{"x":1}'),
        ('{"arguments": {"x": [1, null]}, "name": "f", "more": 1}', '{"x": [1, null]}'),
        ('{"name": "f", "arguments": {"x": "<|fim_pad|>"}}', '{"x": ""}'),
        ('{"name": "f", "arguments": "x"}', None),
        ('{"name": "f", "arguments": [1]}', None),
        ('{"name": "f", "arguments": null}', None),
        ('{"name": 3, "arguments": {}}', None),
        ('{"name": "", "arguments": {}}', None),
        ('{"arguments": {}}', None),
        ('{"name": "f", "arguments": {"x": "\\ud800"}}', None),
        ('{"name": "f", "arguments": {"x": NaN}}', None),
        ('{"name": "f", "arguments": {"x": 78E417}}', '{"x": 1.7976931348623157e+308}'),
        ('{"name": "f", "arguments": {"x": 1}', None),
        ("[]", None),
        ("", None),
    ],
)
def test_bodies_of_calls(run: Callable[..., list[Any]], body: str, arguments: str | None) -> None:
    text = f"a\n<tool_call>{body}</tool_call>\n"
    if arguments is None:
        assert run(text, tools=True) == [("content", text), "stop"]
    else:
        assert run(text, tools=True) == [("content", "a"), ToolCall("call_0", "f", arguments), "tool_calls"]


def test_calls_without_an_end(run: Callable[..., list[Any]]) -> None:
    half = GOOD.removesuffix("</tool_call>")
    assert run(half + "<|im_end|>", tools=True) == [CALL, "tool_calls"]
    assert run(half, "length", tools=True) == [("content", half), "length"]
    assert run("a\n" + half[:-3], "stop", tools=True) == [("content", "a\n" + half[:-3]), "stop"]
    assert run(half + GOOD, tools=True) == [CALL, ToolCall("call_1", "f", CALL.arguments), "tool_calls"]
    assert run("<tool_call>x" + GOOD, tools=True) == [("content", "<tool_call>x"), CALL, "tool_calls"]


def test_at_most_so_many_calls(tokenizer: Tokenizer, make: Make, shown: Shown) -> None:
    parser = make(tools=True, max_calls=1)
    ids = tokenizer.encode_trusted(GOOD + GOOD + "more")
    events = parser.feed(ids)
    assert parser.stopped and parser.calls == 1
    assert list(shown(events + parser.feed(ids) + parser.finish("abort"))) == [CALL, "tool_calls"]


def test_stop_strings(run: Callable[..., list[Any]]) -> None:
    assert run("no STOP yes", stop=["STOP"]) == [("content", "no "), "stop"]
    assert run("no STOP yes", "length", stop=["yes", "O"]) == [("content", "no ST"), "stop"]
    assert run("STOP</think>a STOP b", "abort", thinking=True, stop=["STOP"]) == [
        ("reasoning", "STOP"),
        ("content", "a "),
        "stop",
    ]
    assert run("a b", "length", stop=["b c"]) == [("content", "a b"), "length"]
    assert run(f"ab{GOOD}cd", tools=True, stop=["bc", "name"]) == [
        ("content", "ab"),
        CALL,
        ("content", "cd"),
        "tool_calls",
    ]
    assert run(f"{GOOD} STOP", "abort", tools=True, stop=["STOP"]) == [CALL, "tool_calls"]
    assert run("<tool_call>oh STOP</tool_call>", tools=True, stop=["STOP"]) == [
        ("content", "<tool_call>oh "),
        "stop",
    ]


def test_text_is_held_back_no_longer_than_needed(tokenizer: Tokenizer, make: Make) -> None:
    def stream(text: str, **options: Any) -> list[str]:
        parser = make(**options)
        return [
            "".join(getattr(e, "text", "") for e in parser.feed([i])) for i in tokenizer.encode_trusted(text)
        ]

    assert all(stream("Once upon a time")), "every token shows at once"
    assert stream("1\n2", tools=True) == ["1", "", "\n2"]
    assert stream("1\n2") == ["1", "\n", "2"]
    assert stream("1\n2", thinking=True) == ["1", "", "\n2"]
    assert stream("1213", stop=["123"]) == ["", "", "12", "13"]
    assert "".join(stream("😀", tools=True)) == "😀" and stream("😀")[0] == ""


def test_counts_and_token_ids(tokenizer: Tokenizer, make: Make) -> None:
    parser = make(thinking=True, tools=True)
    reasoning, answer = tokenizer.encode("hm\n"), tokenizer.encode("ok ")
    call = tokenizer.encode_trusted(GOOD)
    close, end = tokenizer.encode_trusted("</think>\n\n"), tokenizer.encode_trusted("<|im_end|>")
    events = joined(parser.feed([*reasoning, *close, *answer, *call, *end]) + parser.finish("stop"))
    assert parser.reasoning_tokens == len(reasoning)
    assert events == [
        ReasoningDelta("hm", tuple(tokenizer.encode("hm"))),
        ContentDelta("ok", tuple(tokenizer.encode("ok"))),
        ToolCallDelta(CALL, 0, tuple(call)),
        Finish("tool_calls"),
    ]


def test_token_ids_of_a_broken_call_are_contents(tokenizer: Tokenizer, make: Make) -> None:
    parser = make(tools=True)
    ids = tokenizer.encode_trusted("a\n<tool_call>{</tool_call>b")
    text = tokenizer.decode(ids, skip_control=False)
    assert joined(parser.feed(ids) + parser.finish("stop")) == [
        ContentDelta(text, tuple(ids)),
        Finish("stop"),
    ]


def test_half_a_character_ends_with_its_section(tokenizer: Tokenizer, make: Make, shown: Shown) -> None:
    half = tokenizer.encode("😀")[:-1]
    thought, call = tokenizer.encode_trusted("</think>a"), tokenizer.encode_trusted(GOOD)
    parser = make(thinking=True, tools=True)
    events = parser.feed([*half, *thought, *half, *call, *half]) + parser.finish("length")
    ends = [("reasoning", "\ufffd"), ("content", "a\ufffd"), CALL, ("content", "\ufffd"), "length"]
    assert list(shown(events)) == ends


def test_call_ids() -> None:
    assert re.fullmatch("call_[0-9a-f]{22}", new_call_id()) and new_call_id() != new_call_id()
