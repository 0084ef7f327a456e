"""The offline face, with the embedded models: whole answers, streams, batches, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from qnext import LLM, EngineConfig, Message, SamplingParams
from qnext.llm import GenerationError
from qnext.text.events import ContentDelta, Finish, ReasoningDelta

QUESTION = [{"role": "user", "content": "Hello! Who are you?"}]
GREEDY = SamplingParams(temperature=0, max_tokens=24)


@pytest.fixture(scope="module")
def instruct() -> Iterator[LLM]:
    with LLM("tiny-instruct", engine=EngineConfig(max_sequences=4, max_length=512)) as llm:
        yield llm


@pytest.fixture(scope="module")
def thinking() -> Iterator[LLM]:
    with LLM("tiny-thinking", engine=EngineConfig(max_sequences=4, max_length=512)) as llm:
        yield llm


def test_stream_gives_what_chat_gives(instruct: LLM) -> None:
    answer = instruct.chat(QUESTION, GREEDY)
    events = list(instruct.stream(QUESTION, GREEDY))
    assert "".join(event.text for event in events if isinstance(event, ContentDelta)) == answer.text
    assert events[-1] == Finish(answer.finish_reason)
    assert answer.text


def test_message_objects_and_dicts_are_the_same(instruct: LLM) -> None:
    assert instruct.chat([Message("user", "Hi")], GREEDY) == instruct.chat(
        [{"role": "user", "content": "Hi"}], GREEDY
    )


def test_usage_counts_tokens(instruct: LLM) -> None:
    answer = instruct.chat(QUESTION, SamplingParams(temperature=0, max_tokens=3, ignore_eos=True))
    assert answer.finish_reason == "length"
    assert answer.usage.output_tokens == len(answer.token_ids) == 3
    assert answer.usage.input_tokens == len(instruct.chat_format.encode(QUESTION).ids)


def test_generate_takes_texts_and_ids_and_draws_n(instruct: LLM) -> None:
    ids = instruct.chat_format.tokenizer.encode("Once upon a time")
    sampling = SamplingParams(temperature=1.5, seed=5, n=2, max_tokens=20)
    first, second, third, fourth = instruct.generate(["Once upon a time", ids], sampling)
    assert (first.text, second.text) == (third.text, fourth.text)
    assert first.text != second.text
    single = instruct.generate(["Once upon a time"], replace(sampling, seed=6, n=1))[0]
    assert single.text == second.text


def test_stop_text_ends_the_answer_and_is_not_shown(instruct: LLM) -> None:
    whole = instruct.generate(["Once upon a time"], GREEDY)[0].text
    stop = whole.strip()[4:7]
    cut = instruct.generate(["Once upon a time"], SamplingParams(temperature=0, max_tokens=24, stop=stop))[0]
    assert cut.text == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"


def test_logprobs_are_of_the_tokens(instruct: LLM) -> None:
    answer = instruct.chat(QUESTION, SamplingParams(temperature=0, max_tokens=4, logprobs=2))
    assert [report.token_id for report in answer.logprobs] == list(answer.token_ids)
    assert all(report.top[0][0] == report.token_id and report.logprob <= 0 for report in answer.logprobs)


def test_thinking_is_told_apart_and_can_be_cut_short(thinking: LLM) -> None:
    answer = thinking.chat(QUESTION, SamplingParams(temperature=0, max_tokens=16, thinking_budget=3))
    assert answer.reasoning and "think>" not in answer.reasoning + answer.text
    assert answer.usage.reasoning_tokens <= 3 + 4
    events = list(thinking.stream(QUESTION, SamplingParams(temperature=0, max_tokens=16, thinking_budget=3)))
    assert "".join(event.text for event in events if isinstance(event, ReasoningDelta)) == answer.reasoning


def test_leaving_a_stream_early_frees_its_places(instruct: LLM) -> None:
    for _ in instruct.stream(QUESTION, SamplingParams(max_tokens=400, ignore_eos=True)):
        break
    instruct.chat(QUESTION, GREEDY)
    assert instruct.engine.slots.free == instruct.engine.slots.size
    assert instruct.engine.stats().pages_used == 0


def test_what_cannot_be_is_refused_in_words(instruct: LLM) -> None:
    with pytest.raises(
        ValueError, match="no model 'nowhere': give a checkpoint directory, or one of tiny-base"
    ):
        LLM("nowhere")
    with pytest.raises(ValueError, match="n is 2"):
        instruct.chat(QUESTION, SamplingParams(n=2))
    with pytest.raises(ValueError, match="the prompt has 600 tokens: at most 511"):
        instruct.generate([[5] * 600], GREEDY)
    with LLM("tiny-base") as base, pytest.raises(ValueError, match="no chat template"):
        base.chat(QUESTION)


def test_an_engine_failure_is_an_exception(instruct: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(instruct.engine._steps.runner, "run", fail)
        with pytest.raises(GenerationError, match="out of memory"):
            instruct.chat(QUESTION, GREEDY)
    assert instruct.chat(QUESTION, GREEDY).text


STORY = [{"role": "user", "content": "Tell me a story about a cat and a bird that live by the sea."}]


def test_keys_and_values_in_8_bits_give_one_answer_however_they_come_about() -> None:
    """Guessed ahead or not, from a cache or not, in pieces of any size; and nearly that of 16 bits."""
    asked = SamplingParams(temperature=0, max_tokens=60, logprobs=1, ignore_eos=True)
    settings = (
        EngineConfig(draft_tokens=0, prefix_cache=False),
        EngineConfig(draft_tokens=3, fixed_drafts=True),
        EngineConfig(step_tokens=5, page_size=8),
    )
    found = []
    for setting in settings:
        with LLM("tiny-instruct", engine=replace(setting, max_length=512), kv_cache="int8") as llm:
            found += [llm.chat(STORY, asked), llm.chat(STORY, asked)]
            assert found[-1].usage.cached_tokens > 0 or not setting.prefix_cache
    assert {answer.token_ids for answer in found} == {found[0].token_ids}
    with LLM("tiny-instruct", engine=EngineConfig(max_length=512)) as llm:
        known = llm.chat(STORY, asked)
    same = [a == b for a, b in zip(found[0].token_ids, known.token_ids, strict=True)]
    first = same.index(False) if False in same else len(same)
    assert first >= 5
    gaps = [
        abs(ours.logprob - theirs.logprob)
        for ours, theirs in zip(found[0].logprobs[:first], known.logprobs[:first], strict=True)
    ]
    assert 0 < max(gaps) < 0.5
