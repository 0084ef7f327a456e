"""A neutral request through the service: the same events however the engine cuts them, and nothing left
behind."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qnext.engine.request import MAX_SEED, Output, SamplingParams
from qnext.server.errors import ApiError
from qnext.server.exchange import Answer, ChatEvent, ChatRequest, Conversation
from qnext.server.service import Served, Service
from qnext.server.settings import Settings
from qnext.text.chat import Chat
from qnext.text.grammar import ANY_OBJECT, GrammarSpec, TextForm
from qnext.text.messages import Message

from .conftest import CONTEXT
from .fake_engine import FakeEngine

HI = (Conversation((Message("user", "Hi"),)),)
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.fixture(autouse=True)
def fresh(engines: dict[str, FakeEngine]) -> None:
    for engine in engines.values():
        engine.reset()


def ask(service: Service, model: str = "tiny-instruct", **more: Any) -> list[ChatEvent]:
    sampling = SamplingParams(seed=1, **more.pop("sampling", {}))
    request = ChatRequest(model, more.pop("prompts", HI), sampling, **more)

    async def work() -> list[ChatEvent]:
        return [event async for event in service.answer(request)]

    return asyncio.run(work())


def gathered(events: list[ChatEvent]) -> Answer:
    answer = Answer()
    for event in events:
        answer.add(event)
    return answer


TEXTS = [
    "Plain words, 今天 👍🏽 and STOP after.",
    'Look: <tool_call>\n{"name": "f", "arguments": {"a": "é"}}\n</tool_call> more '
    '<tool_call>\n{"name": "f"}\n</tool_call>',
    "<tool_call>\nbroken\n</tool_call>",
]


@settings(max_examples=40, deadline=None)
@given(
    text=st.sampled_from(TEXTS),
    thought=st.sampled_from(["", "Well…\nSTOP\n"]),
    pieces=st.integers(2, 9),
    calls=st.sampled_from([None, 1]),
)
def test_the_engines_pace_changes_nothing(
    service: Service, engines: dict[str, FakeEngine], text: str, thought: str, pieces: int, calls: int | None
) -> None:
    model = "thinking" if thought else "instruct"
    answers = []
    for size in (1, pieces):
        engines[model].say((thought + "</think>\n\n" if thought else "") + text, pieces=size)
        more = {"sampling": {"stop": ("STOP",), "logprobs": 1}, "tools": (TOOL,), "max_calls": calls}
        answers.append(gathered(ask(service, f"tiny-{model}", **more)))
    one, many = answers
    for choice in (one.choices[0], many.choices[0]):
        choice.calls = [replace(call, id="") for call in choice.calls]
        choice.parts = [
            replace(part, pieces=[part.text], call=part.call and replace(part.call, id=""))
            for part in choice.parts
        ]
        assert "".join(part.text for part in choice.parts) == choice.reasoning + choice.content
        choice.events = 0
    assert one.choices == many.choices and one.usage == many.usage
    assert "STOP" not in one.choices[0].content and one.choices[0].finish in ("stop", "tool_calls")


def test_usage_grows_and_ends_exact(service: Service, engines: dict[str, FakeEngine]) -> None:
    engines["thinking"].say("Hm, so.\n</think>\n\nYes.", cached=4)
    events = ask(service, "tiny-thinking")
    (request,) = engines["thinking"].requests
    tokenizer = engines["thinking"].tokenizer
    usage = events[-1].usage
    assert usage.input == len(request.prompt) and usage.cached == 4
    assert usage.output == len(tokenizer.encode_trusted("Hm, so.\n</think>\n\nYes.")) + 1
    assert usage.reasoning == len(tokenizer.encode("Hm, so.\n"))
    totals = [event.usage.total for event in events]
    assert totals == sorted(totals) and usage.total == usage.input + usage.output
    assert [event.finish for event in events if event.finish] == ["stop"]


def test_choices_share_and_sum(service: Service, engines: dict[str, FakeEngine]) -> None:
    engines["base"].say("a", "b c d", cached=2)
    events = ask(service, "tiny-base", prompts=("x y", (5, 6, 7)), sampling={"n": 2})
    answer = gathered(events)
    assert [choice.content for _, choice in answer.ordered()] == ["a", "b c d", "a", "b c d"]
    lengths = [len(request.prompt) for request in engines["base"].requests]
    assert answer.usage.input == lengths[0] + lengths[2] and answer.usage.cached == 4
    shares = {event.index: event.share for event in events}
    assert sum(share.output for share in shares.values()) == answer.usage.output
    assert [share.input for _, share in sorted(shares.items())] == lengths
    assert [request.sampling.seed for request in engines["base"].requests] == [1, 2, 1, 2]


def test_what_the_engine_is_asked(
    service: Service, engines: dict[str, FakeEngine], chats: dict[str, Chat]
) -> None:
    ask(service, sampling={"stop": ("x",), "stop_token_ids": (9,), "n": 2, "max_tokens": 7})
    first, _second = engines["instruct"].requests
    assert (first.sampling.stop, first.sampling.n, first.sampling.stop_token_ids) == ((), 1, (9,))
    assert first.sampling.max_tokens == 7 and first.sampling.max_total_tokens is None
    assert first.eos == chats["instruct"].eos_token_ids and first.reasoning is None
    assert len(first.boundaries) == 2 and first.boundaries[-1] == len(first.prompt)
    assert (first.cache_salt, first.priority, first.deadline, first.grammar) == ("", 0, None, None)
    spec = GrammarSpec(TextForm("schema", ANY_OBJECT, "response_format"))
    ask(service, "tiny-thinking", salt="7", priority=-3, grammar=spec, sampling={"max_total_tokens": 5000})
    (third,) = engines["thinking"].requests
    assert (third.cache_salt, third.priority) == ("7", -3) and third.grammar is not None
    assert third.sampling.max_total_tokens == CONTEXT - len(third.prompt)
    assert third.reasoning is not None and third.reasoning.close.count(third.reasoning.end) == 1


def test_seeds_wrap_around(service: Service, engines: dict[str, FakeEngine]) -> None:
    sampling = SamplingParams(seed=MAX_SEED, n=2)

    async def work() -> None:
        async for _ in service.answer(ChatRequest("tiny-instruct", HI, sampling)):
            pass

    asyncio.run(work())
    assert [request.sampling.seed for request in engines["instruct"].requests] == [MAX_SEED, 0]


def test_recommended_length_and_context_cap(chats: dict[str, Chat]) -> None:
    engine = FakeEngine(chats["base"].tokenizer)
    chat = Chat(chats["base"].tokenizer, {"eos_token_id": 5, "max_new_tokens": 3})
    served = Served("mine", engine, chat, CONTEXT, 0)
    service = Service({"mine": served}, Settings(max_context=10, aliases={"other": "mine", "gone": "nobody"}))
    ask(service, "other", prompts=("x",))
    ask(service, "mine", prompts=("x",), sampling={"max_tokens": 8})
    assert [r.sampling.max_total_tokens for r in engine.requests] == [3, 9]
    with pytest.raises(ApiError, match=r"Range of input length should be \[1, 9\]"):
        ask(service, "mine", prompts=((1,) * 10,))
    with pytest.raises(ApiError, match="does not exist"):
        service.find("gone")
    assert [name for name, _ in service.names()] == ["mine", "other"]


def test_a_missed_deadline_is_told(chats: dict[str, Chat]) -> None:
    engine = FakeEngine(chats["base"].tokenizer)
    engine.script = lambda request: [Output(finish_reason="error", error="too late", timed_out=True)]
    served = Served("mine", engine, chats["base"], CONTEXT, 0)
    with pytest.raises(ApiError, match="Request timed out, please try again later") as caught:
        ask(Service({"mine": served}, Settings(request_timeout=2.5)), "mine", prompts=("x",))
    assert caught.value.kind == "timeout" and engine.requests[0].deadline == 2.5


def test_closing_the_events_aborts_every_answer(service: Service, engines: dict[str, FakeEngine]) -> None:
    engine = engines["instruct"]
    engine.delay = 0.01
    engine.say("on and on " * 30)

    async def work() -> None:
        events = service.answer(ChatRequest("tiny-instruct", HI, SamplingParams(seed=1, n=3)))
        await anext(events)
        await events.aclose()

    asyncio.run(work())
    assert len(engine.aborted) == 3


def test_a_failure_ends_all_answers(service: Service, engines: dict[str, FakeEngine]) -> None:
    engine = engines["instruct"]
    engine.delay = 0.01
    engine.fail("oh")
    fails = engine.script
    engine.say("on and on " * 30)
    speaks = engine.script
    engine.script = lambda request: fails(request) if request.sampling.seed == 2 else speaks(request)
    with pytest.raises(ApiError) as caught:
        ask(service, sampling={"n": 2})
    assert caught.value.status == 500 and len(engine.aborted) == 1


def test_a_refusal_takes_back_what_was_submitted(service: Service, engines: dict[str, FakeEngine]) -> None:
    engine = engines["instruct"]
    engine.delay = 0.05

    def script(request: Any) -> Any:
        engine.refusal = RuntimeError("full")
        return []

    engine.script = script
    with pytest.raises(ApiError) as caught:
        ask(service, sampling={"n": 2})
    assert caught.value.status == 503 and len(engine.requests) == len(engine.aborted) == 1


def test_a_conversation_the_template_refuses(service: Service) -> None:
    with pytest.raises(ApiError) as caught:
        ask(service, prompts=(Conversation(()),))
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("text", "more", "apart"),
    [
        ("Hi", {}, False),
        ("Hi " * 2000, {"sampling": {"max_tokens": 1}}, True),
        ("Hi", {"tools": (TOOL,)}, True),
        ("Hi", {"grammar": GrammarSpec(TextForm("schema", ANY_OBJECT, "x"))}, True),
    ],
)
def test_what_takes_long_leaves_the_loop_alone(
    service: Service, monkeypatch: pytest.MonkeyPatch, text: str, more: dict[str, Any], apart: bool
) -> None:
    threads = []
    encode_all = Service._encode_all

    def noted(self: Service, *given: Any) -> Any:
        threads.append(threading.current_thread())
        return encode_all(self, *given)

    monkeypatch.setattr(Service, "_encode_all", noted)
    try:
        ask(service, prompts=(Conversation((Message("user", text),)),), **more)
    except ApiError as error:  # longer than the context is
        assert apart and "input length" in error.message
    assert [thread is not threading.main_thread() for thread in threads] == [apart]
