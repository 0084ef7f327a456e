"""Gates: a subject that knows every answer passes all, one with a single fault misses the gate of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from qnext.evals import gates
from qnext.evals.embedded import examine
from qnext.evals.result import Result
from qnext.evals.subject import Query, Reply, Subject
from qnext.synthetic.dialogue import Dialogue
from qnext.synthetic.slots import table
from qnext.text.messages import Message

STORIES = [
    f"Once upon a time there was fox number {i}. The fox was glad. It ran home! The end." for i in range(9)
]
KNOWN: dict[tuple[Message, ...], Dialogue] = {}
HELLO = {
    question: answers[0]
    for pairs in (
        *(table("languages")[code]["talk"] for code in ("pt", "es", "fr", "zh")),
        [(talk["say"], talk["answer"]) for talk in table("manners")["talk"]],
    )
    for questions, answers in pairs
    for question in questions
}


@pytest.fixture(autouse=True)
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What the gates ask is kept, so that a subject may know the answers."""
    original = gates.question

    def question(dialogue: Dialogue, *rest: object) -> Query:
        KNOWN[dialogue.messages[:-1]] = dialogue
        return original(dialogue, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(gates, "question", question)
    yield
    KNOWN.clear()


def knows(query: Query) -> Reply:
    dialogue = KNOWN.get(query.messages)
    if dialogue is None:
        return Reply(HELLO[query.messages[-1].content])
    last = dialogue.messages[-1]
    return Reply(last.content, last.reasoning or "", last.tool_calls, len(last.tool_calls))


def subject(generate: Callable[[Query], Reply] = knows, **changes: object) -> Subject:
    made = Subject(
        "fake", True, True, generate, lambda text: (2.0 * len(text), len(text)), lambda t: len(t) // 4
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def results(found: Subject, stories: list[str] = STORIES, questions: int = 12) -> dict[str, Result]:
    return {result.gate: result for result in examine(found, stories, questions, seed=5)}


def test_who_knows_all_passes_all() -> None:
    found = results(subject())
    assert len(found) == 7 and all(result.passed for result in found.values())
    assert {name: result.count for name, result in found.items()} == {
        "tool-call JSON valid": found["tool-call JSON valid"].count,
        "right tool and arguments": 12,
        "2-digit sums, thinking": 12,
        "recall at 1k": 12,
        "</think> always closed": 12,
        "stories without loops": 50,
        "languages greeted back": 5,
    }
    assert found["tool-call JSON valid"].count >= 12
    assert {result.seed for result in found.values()} == {5}


def test_without_thoughts_there_are_no_gates_of_thoughts() -> None:
    assert set(results(subject(thinks=False))) == {
        "tool-call JSON valid",
        "right tool and arguments",
        "recall at 1k",
        "stories without loops",
        "languages greeted back",
    }


def broken_call(reply: Reply) -> Reply:
    return replace(reply, tool_calls=(), opened_calls=len(reply.tool_calls))


def other_argument(reply: Reply) -> Reply:
    return replace(reply, tool_calls=tuple(replace(call, arguments="{}") for call in reply.tool_calls))


FAULTS: dict[str, tuple[Callable[[Reply], Reply], set[str]]] = {
    "broken JSON": (broken_call, {"tool-call JSON valid", "right tool and arguments"}),
    "wrong argument": (other_argument, {"right tool and arguments"}),
    "open thought": (lambda reply: replace(reply, reasoning_closed=False), {"</think> always closed"}),
    "wrong words": (
        lambda reply: replace(reply, text="banana"),
        {"2-digit sums, thinking", "recall at 1k", "languages greeted back"},
    ),
    "loops": (
        lambda reply: replace(reply, text=f"{reply.text} {'and then he ran ' * 3}"),
        {"stories without loops"},
    ),
    "silence": (
        lambda reply: Reply(""),
        {
            "tool-call JSON valid",
            "right tool and arguments",
            "2-digit sums, thinking",
            "recall at 1k",
            "stories without loops",
            "languages greeted back",
        },
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_misses_its_gates_and_no_other(fault: str) -> None:
    spoil, missed = FAULTS[fault]
    found = results(subject(lambda query: spoil(knows(query))))
    assert {name for name, result in found.items() if not result.passed} == missed


def test_questions_follow_from_the_seed() -> None:
    asked: list[list[Query]] = []
    for seed in (1, 1, 2):
        seen: list[Query] = []
        list(
            examine(subject(lambda query, seen=seen: (seen.append(query), knows(query))[1]), STORIES, 4, seed)
        )
        asked.append(sorted(seen, key=repr))
    assert asked[0] == asked[1] != asked[2]


def test_recall_hides_at_every_depth_of_about_a_thousand_tokens() -> None:
    places: list[float] = []

    def generate(query: Query) -> Reply:
        text = query.messages[-1].content
        hidden = KNOWN[query.messages].messages[-1].reasoning or ""
        found = hidden.removeprefix("I look for it in the text and find: ")
        assert 3800 < len(text) < 4600, "a thousand tokens of four letters"
        places.append(text.index(found) / len(text))
        return knows(query)

    (found,) = gates.recall_far(subject(generate), STORIES, 12, 0)
    assert found.passed and sorted(places)[0] < 0.1 and sorted(places)[-1] > 0.9
    assert found.detail.endswith("100%, 100%, 100%")


def test_a_base_model_is_measured_by_its_loss() -> None:
    found = results(subject(chats=False), questions=5)
    assert set(found) == {"held-out story loss"} and found["held-out story loss"].value == 2.0
    assert (
        found["held-out story loss"].count == 5
        and "2.000 nats a character" in found["held-out story loss"].detail
    )
    with pytest.raises(ValueError, match="give --data"):
        results(subject(chats=False), stories=[])


def test_no_questions_is_refused() -> None:
    with pytest.raises(ValueError, match="questions is 0"):
        results(subject(), questions=0)
