"""Rollouts: answers drawn from the model that is being trained, and who draws them.

`reinforcement` asks an `Actor`; `qnext.actor` is one with our engine, a test's fake fits as well. Invariant:
the log-probabilities of an answer are those of the weights that it was drawn with.

Legend: A tokens of an answer, L sparse layers, k experts of a token, T tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from qnext.model.qwen3_next import Qwen3Next

from .recipe import Recipe

UNKNOWN = -1  # an expert that was not recorded


@dataclass(frozen=True)
class Ask:
    """A prompt of token ids, to be answered by drawing from the whole distribution at `temperature` until one
    of `eos` or `max_tokens`. The same seed draws the same answer. `routed`: tell the experts too."""

    prompt: tuple[int, ...]
    eos: tuple[int, ...]
    seed: int
    temperature: float
    max_tokens: int
    routed: bool


@dataclass(frozen=True, eq=False)
class Rollout:
    """An answer: its ids, the end token included where it `ended` by itself; their log-probabilities at the
    temperature [A]; and the experts of each token of prompt and answer [T, L, k], UNKNOWN where nobody saw,
    or None."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    log_probs: Tensor
    ended: bool
    experts: Tensor | None = None

    @property
    def length(self) -> int:
        """Of prompt and answer."""
        return len(self.prompt) + len(self.answer)


class Actor(Protocol):
    """Answers with the weights that it was last given."""

    def refresh(self, model: Qwen3Next) -> None:
        """Take over the weights as they are now."""
        ...

    def answer(self, asks: Sequence[Ask]) -> list[Rollout]:
        """An answer to each, in their order."""
        ...

    def close(self) -> None:
        """No more will be asked."""
        ...


OpenActor = Callable[[Recipe], Actor]


@dataclass(frozen=True, eq=False)
class Row:
    """Rollouts laid end to end, to be learned from at once: ids [T], documents' lengths, the places of the
    answers' tokens in the row, the answers' lengths, and the experts [T, L, k] or None."""

    ids: Tensor
    lengths: tuple[int, ...]
    places: Tensor
    answers: tuple[int, ...]
    experts: Tensor | None

    @classmethod
    def of(cls, rollouts: Sequence[Rollout], device: torch.device | str) -> Row:
        """Experts are replayed where all rollouts have them."""
        lengths = tuple(each.length for each in rollouts)
        answers = tuple(len(each.answer) for each in rollouts)
        ends = torch.tensor(lengths).cumsum(0).tolist()
        experts = [each.experts for each in rollouts if each.experts is not None]
        return cls(
            torch.tensor([token for each in rollouts for token in each.prompt + each.answer]).to(device),
            lengths,
            torch.cat([torch.arange(end - size, end) for end, size in zip(ends, answers, strict=True)]).to(
                device
            ),
            answers,
            torch.cat(experts).to(device) if len(experts) == len(rollouts) else None,
        )


def in_rows(rollouts: Sequence[Rollout], room: int) -> Iterator[list[int]]:
    """Indices of rollouts in turn, as many at a time as have at most `room` tokens, at least one."""
    row: list[int] = []
    used = 0
    for index, rollout in enumerate(rollouts):
        if row and used + rollout.length > room:
            yield row
            row, used = [], 0
        row.append(index)
        used += rollout.length
    if row:
        yield row
