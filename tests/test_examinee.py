"""The examinee: its loss is the network's own, and its replies say what the answer's tokens say."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from qnext import LLM, Qwen3Next
from qnext.evals.subject import Query
from qnext.examinee import SCORED_TOKENS, subject
from qnext.llm import Answer, Usage
from qnext.models import locate
from qnext.text.events import ToolCallDelta
from qnext.text.messages import Message
from qnext.text.tokenizer import Tokenizer

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get current weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


@pytest.fixture(scope="module")
def thinking() -> Iterator[LLM]:
    with LLM("tiny-thinking") as llm:
        yield llm


@pytest.mark.parametrize("repeats", [1, 200])
def test_a_score_is_the_loss_of_the_forward(thinking: LLM, repeats: int) -> None:
    text = "Once upon a time, there was a little fox. " * repeats
    nats, count = subject(thinking, "tiny").score(text)
    tokenizer = Tokenizer.from_pretrained(locate("tiny-thinking"))
    ids = [*tokenizer.encode(text)[: SCORED_TOKENS - 1], tokenizer.control["<|endoftext|>"]]
    model = Qwen3Next.from_pretrained(locate("tiny-thinking"), dtype=torch.float32)
    with torch.no_grad():
        logits = model.logits(model(torch.tensor(ids)))
    wanted = F.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="sum").item()
    assert count == len(ids) - 1 and nats == pytest.approx(wanted, rel=0.02)  # its weights are bfloat16


CALL = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'


@pytest.mark.parametrize(
    ("written", "closed", "opened", "read"),
    [
        (f"I call it.\n</think>\n\n{CALL}", True, 1, 1),
        (f"I call it.\n</think>\n\n{CALL}\n{CALL}", True, 2, 2),
        (f"I call it.\n</think>\n\n{CALL.replace('}}', '')}\n{CALL}", True, 2, 1),
        ("I do not.\n</think>\n\nHello!", True, 0, 0),
        (f"{CALL}\n</think>\n\nHello!", True, 0, 0),  # what is thought is not called
        (f"I think and think {CALL}", False, 0, 0),
    ],
)
def test_replies_tell_calls_and_thoughts(
    thinking: LLM, monkeypatch: pytest.MonkeyPatch, written: str, closed: bool, opened: int, read: int
) -> None:
    """Whatever the model writes: here it is written for it."""
    chat, messages = thinking.chat_format, (Message("user", "Is it cold in Oslo?"),)
    ids = chat.tokenizer.encode_trusted(written)
    parser = chat.parser(chat.encode(messages, [WEATHER]), tools=[WEATHER])
    calls = [e.call for e in [*parser.feed(ids), *parser.finish("stop")] if isinstance(e, ToolCallDelta)]
    answer = Answer("text", "thought", tuple(calls), "stop", Usage(1, len(ids), 0), tuple(ids))
    monkeypatch.setattr(thinking, "chat", lambda *_, **__: answer)
    reply = subject(thinking, "tiny").generate(Query(messages, (WEATHER,)))
    assert (reply.reasoning_closed, reply.opened_calls, len(reply.tool_calls)) == (closed, opened, read)
    assert (reply.text, reply.reasoning) == ("text", "thought")


def test_nothing_ends_a_thought_but_the_model(thinking: LLM) -> None:
    examined = subject(thinking, "tiny")
    assert examined.chats and examined.thinks and examined.count_tokens("Hello there") > 1
    cut = examined.generate(Query((Message("user", "What is 23 + 45?"),), max_tokens=3))
    assert not cut.reasoning_closed and not cut.text and not cut.opened_calls


def test_the_same_seed_gives_the_same_reply(thinking: LLM) -> None:
    examined = subject(thinking, "tiny")
    query = Query((Message("user", "Tell me a story."),), temperature=None, seed=3, max_tokens=60)
    assert examined.generate(query) == examined.generate(query)
