"""The parser against a judge that reads the same answer as a whole, by other means; in any chunking."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from qnext.text.events import Event, FinishReason, joined
from qnext.text.messages import ToolCall
from qnext.text.parser import OutputParser
from qnext.text.tokenizer import Tokenizer

Make = Callable[..., OutputParser]
Shown = Callable[[list[Event]], Iterator[Any]]
GOOD = '<tool_call>\n{"name": "f", "arguments": {"x": "é"}}\n</tool_call>'


def batch(tokenizer: Tokenizer, ids: list[int], reason: str, options: dict[str, Any]) -> list[Any]:
    tools, thinking, raw = options["tools"], options["thinking"], options["raw"]
    letters = {tokenizer.control[tag]: letter for tag, letter in TAGS.items()}
    tape = "".join(letters.get(i, "h" if i in tokenizer.control_ids else "x") for i in ids)
    tape = re.sub("[Tt]", "x", tape) if raw else tape
    tape = tape if tools or thinking else re.sub("[Cc]", "x", tape)

    def text(start: int, end: int, kept: str) -> str:
        return tokenizer.decode((ids[i] for i in range(start, end) if tape[i] in kept), skip_control=False)

    result: list[Any] = []
    begin = 0
    opened = None if raw or thinking else re.match("[htc]*T" if tools else "[ht]*T", tape)
    if thinking or opened:
        start = opened.end() if opened else 0
        end = tape.find("t", start) if "t" in tape[start:] else len(tape)
        result.append(("reasoning", text(start, end, "xCc").strip("\n")))
        begin = end
    if not tools:
        tape = tape[:begin] + re.sub("[Cc]", "x", tape[begin:])
    items: list[Any] = []  # texts and calls in turn
    for match in re.finditer("C[^Cc]*c?|[^C]+", tape[begin:]):
        start, end = begin + match.start(), begin + match.end()
        if match[0][0] != "C":
            items.append(text(start, end, "x"))
            if start == begin and result:
                items[-1] = re.sub("^\n{1,2}", "", items[-1])
            continue
        whole = match[0].endswith("c") or end < len(tape) or reason == "stop"
        call = spelled_call(text(start, end, "x")) if whole else None
        items.append(call or text(start, end, "xCc"))
    return result + list(finished(items, reason, options))


def finished(items: list[Any], reason: str, options: dict[str, Any]) -> Iterator[Any]:
    """Texts between calls, cut at stop strings, without layout around the calls; the reason."""
    calls, segment = 0, ""
    for item in [*items, None]:
        if isinstance(item, str):
            segment += item
            continue
        for end in range(len(segment) + 1):
            stop = next((s for s in options["stop"] if segment[:end].endswith(s)), None)
            if stop:
                segment = segment[: end - len(stop)]
                break
        if item is not None and not stop:
            segment = segment.rstrip()
        if not (calls and segment.isspace()):
            yield ("content", segment)
        if item is None or stop:
            reason = "stop" if stop else reason
            break
        yield ToolCall(f"call_{calls}", *item)
        calls += 1
        segment = ""
        if calls == options["max_calls"]:
            reason = "stop"
            break
    yield "tool_calls" if calls and reason == "stop" else reason


def spelled_call(text: str) -> tuple[str, str] | None:
    try:
        body = json.loads(text)
        return body["name"], json.dumps(body["arguments"], ensure_ascii=False)
    except (ValueError, TypeError, KeyError):
        return None


TAGS = {"<think>": "T", "</think>": "t", "<tool_call>": "C", "</tool_call>": "c"}
EMPTY = [("reasoning", ""), ("content", "")]
BODY = '{"name": "f", "arguments": {"x": "é"}}'
WORDS = st.one_of(
    st.sampled_from(
        [*TAGS, "<|im_end|>", "<|fim_pad|>", GOOD, BODY, BODY[:-1], "\n", "\n\n", " ", "STOP", "ST", "OP"]
    ),
    st.sampled_from(["Once upon", "a time", "👍🏽", "今天", "x\n", " y ", "TO"]),
    st.text(max_size=3),
)


@st.composite
def answers(draw: st.DrawFn, tokenizer: Tokenizer) -> list[int]:
    ids: list[int] = []
    for word in draw(st.lists(WORDS, max_size=10)):
        piece = tokenizer.encode_trusted(word)
        ids += piece[: draw(st.integers(1, len(piece)))] if draw(st.integers(0, 9)) == 0 and piece else piece
    return ids


OPTIONS = st.fixed_dictionaries(
    {
        "thinking": st.booleans(),
        "tools": st.booleans(),
        "raw": st.just(False),
        "stop": st.sampled_from([(), ("STOP",), ("STOP", "TO", "\n\n"), (" ",), ("é",)]),
        "max_calls": st.sampled_from([None, 1, 2]),
    }
) | st.just({"thinking": False, "tools": False, "raw": True, "stop": ("STOP",), "max_calls": None})


@settings(deadline=None, max_examples=600)
@given(data=st.data(), options=OPTIONS, reason=st.sampled_from(["stop", "length", "abort"]))
def test_any_chunking_equals_the_whole(
    tokenizer: Tokenizer,
    make: Make,
    data: st.DataObject,
    options: dict[str, Any],
    reason: FinishReason,
    shown: Shown,
) -> None:
    ids = data.draw(answers(tokenizer))
    whole = make(**options)
    events = joined(whole.feed(ids) + whole.finish(reason))
    chunked, pieces, rest = make(**options), [], ids
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        pieces += chunked.feed(rest[:size])
        rest = rest[size:]
    assert joined(pieces + chunked.finish(reason)) == events
    assert (whole.stopped, whole.reasoning_tokens, whole.calls) == (
        chunked.stopped,
        chunked.reasoning_tokens,
        chunked.calls,
    )
    expected = [part for part in batch(tokenizer, ids, reason, options) if part not in EMPTY]
    assert list(shown(events)) == expected
    attached = [i for event in events for i in getattr(event, "token_ids", ())]
    following = iter(ids)
    assert all(i in following for i in attached), "each token at most once, and in order"
    if options["raw"] and not whole.stopped:
        assert attached == [
            i for i in ids if i not in tokenizer.control_ids or tokenizer.decode([i], False) in TAGS
        ]
