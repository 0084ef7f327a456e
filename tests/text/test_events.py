from __future__ import annotations

from qnext.text.events import ContentDelta, Event, Finish, ReasoningDelta, ToolCallDelta, joined
from qnext.text.messages import ToolCall


def test_joined_merges_neighbours_of_one_kind_only() -> None:
    call = ToolCallDelta(ToolCall("call_1", "f", "{}"), 0, (5,))
    events: list[Event] = [
        ReasoningDelta("a", (1,)),
        ReasoningDelta("b", (2, 3)),
        ContentDelta("c", (4,)),
        call,
        call,
        ContentDelta("d"),
        ContentDelta("e", (6,)),
        Finish("stop"),
    ]
    assert joined(events) == [
        ReasoningDelta("ab", (1, 2, 3)),
        ContentDelta("c", (4,)),
        call,
        call,
        ContentDelta("de", (6,)),
        Finish("stop"),
    ]
