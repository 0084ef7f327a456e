"""The embedded suite: all gates that fit a model, in a fixed order.

Called by `qnext eval embedded`. Invariant: what a model is asked depends on the number of questions and the
seed alone, so two models, or two days, can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from . import gates
from .result import Result
from .subject import Subject


def examine(subject: Subject, stories: Sequence[str], questions: int, seed: int) -> Iterator[Result]:
    """Results as they come. `stories` are held-out texts: to measure the loss on, and to hide things in
    (where there are none the loss is left out and made stories stand in). A model that holds no conversations
    is measured by its loss alone. Raises ValueError where nothing could be measured."""
    if questions < 1:
        raise ValueError(f"questions is {questions}: give 1 or more")
    if not subject.chats:
        if not stories:
            raise ValueError(
                f"{subject.name} is a base model, measured by its loss on held-out stories: give --data"
            )
        yield from gates.heldout_loss(subject, stories, questions, seed)
        return
    yield from gates.tool_calls(subject, questions, seed)
    yield from gates.sums(subject, questions, seed)
    yield from gates.recall_far(subject, stories, questions, seed)
    yield from gates.closed_thoughts(subject, questions, seed)
    yield from gates.told_stories(subject, seed)
    yield from gates.greetings(subject, seed)
