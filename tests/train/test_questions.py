"""Questions: the same for the same seed, only those that can be checked, and judged as they are read."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qnext.models import locate
from qnext.text.chat import Chat
from qnext.train.conversations import load_chat
from qnext.train.mixture import DataSpec, Part
from qnext.train.questions import Questions
from qnext.train.rollout import Rollout


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat.from_pretrained(locate("tiny-thinking"))


def spec(*families: str, **fields: Any) -> DataSpec:
    return DataSpec(tuple(Part("chat", 1.0, family=family) for family in families), **fields)


def answered(chat: Chat, text: str, *, ended: bool = True) -> Rollout:
    ids = chat.tokenizer.encode_trusted(text)
    return Rollout((1,), tuple(ids), torch.zeros(len(ids)), ended)


def test_the_same_seed_asks_the_same_from_any_place(chat: Chat) -> None:
    one, other = (Questions(spec("sums", "tools"), chat, "3", 500) for _ in range(2))
    asked = [one.next() for _ in range(20)]
    other.count = asked[9].number + 1
    assert [other.next() for _ in range(10)] == asked[10:]
    assert len({each.prompt.ids for each in asked}) == 20
    assert Questions(spec("sums"), chat, "4", 500).next().prompt != asked[0].prompt
    assert {bool(each.dialogue.tools) for each in asked} == {True, False}


def test_held_out_sums_are_none_that_are_trained(chat: Chat) -> None:
    parts = (Part("chat", 1.0, family="sums"), Part("chat", 1.0, family="sums", heldout=True))
    trained, kept = (Questions(DataSpec((part,)), chat, "0", 500) for part in parts)
    sums = [
        {each.next().dialogue.messages[-1].content.split(" =")[0] for _ in range(300)}
        for each in (trained, kept)
    ]
    assert len(sums[0]) > 200 and len(sums[1]) > 200 and not sums[0] & sums[1]


def test_what_cannot_be_checked_or_has_no_room_is_passed_over(chat: Chat) -> None:
    mixed = Questions(spec("languages", "facts"), chat, "0", 500)
    assert all(mixed.next().dialogue.checkable for _ in range(20)) and mixed.count > 20
    short = Questions(spec("arithmetic"), chat, "0", 40)
    assert all(len(short.next().prompt.ids) <= 40 for _ in range(20)) and short.count > 20
    with pytest.raises(
        ValueError, match=r"none of 200 questions has 3 tokens or less: raise data\.max_length"
    ):
        Questions(spec("arithmetic"), chat, "0", 3).next()


def test_what_has_nothing_to_check_is_refused(chat: Chat) -> None:
    with pytest.raises(ValueError, match=r"data\.parts\[1\]: nothing of the family 'manners' can be checked"):
        Questions(spec("sums", "manners"), chat, "0", 500)
    with pytest.raises(ValueError, match="no chat template, so it answers no questions"):
        Questions(spec("sums"), load_chat(locate("tiny-base")), "0", 500)


def test_verdicts(chat: Chat) -> None:
    questions = Questions(spec("sums"), chat, "0", 500)
    question = questions.next()
    (result,) = question.dialogue.must
    cases = {
        f"I add. The sum is {result}.\n</think>\n\nIt is {result}.<|im_end|>": (True, True),
        f"I add.\n</think>\n\nIt is {result}1.<|im_end|>": (True, False),
        f"The sum is {result}.\n</think>\n\nSo it is.<|im_end|>": (True, False),  # thought, but not said
        f"It is {result}.<|im_end|>": (False, False),  # said within the thought
    }
    for text, (formed, right) in cases.items():
        verdict = questions.judge(question, answered(chat, text))
        assert (verdict.formed, verdict.right) == (formed, right), text
        assert verdict.reward(0.25) == right + 0.25 * formed
    endless = answered(chat, f"</think>\n\nIt is {result}.", ended=False)
    assert questions.judge(question, endless).reward(0.25) == 0


def test_calls_are_judged_by_their_arguments(chat: Chat) -> None:
    questions = Questions(spec("tools"), chat, "0", 900)
    question = next(
        each
        for each in (questions.next() for _ in range(50))
        if len(each.dialogue.messages[-1].tool_calls) == 1
    )
    (call,) = question.dialogue.messages[-1].tool_calls
    written = f'<tool_call>\n{{"name": "{call.name}", "arguments": {call.arguments}}}\n</tool_call><|im_end|>'
    assert questions.judge(question, answered(chat, f"I call it.\n</think>\n\n{written}")).right
    wrong = written.replace(call.name, "nothing")
    assert not questions.judge(question, answered(chat, f"I call it.\n</think>\n\n{wrong}")).right
