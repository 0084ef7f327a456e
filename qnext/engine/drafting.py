"""Guesses at what comes next, for the model to judge: by its MTP head, or from the text itself.

Called by `engine` between steps. Invariant: a guess is never told to anybody before the model has accepted
it, and guesses cannot change what the model then says, only how soon.
"""

from __future__ import annotations

from collections.abc import Sequence as Row

import numpy as np
from torch import Tensor

from .ahead import Ahead
from .head import Head
from .runner import Runner
from .sampler import Row as Scores
from .sampler import sample
from .sequence import Sequence

LONGEST, SHORTEST = 4, 2  # tokens at the end of a text that are looked for earlier in it


class MTPDrafter:
    """Guesses by the MTP head, each from its own last guess, drawn by the same dice as the answer."""

    def __init__(self, runner: Runner, head: Head) -> None:
        self._runner, self._head = runner, head

    def draft(self, sequences: list[Sequence], count: int, hidden: Tensor) -> None:
        """Leave `count` guesses in each sequence, which must end in a token that is not computed yet.
        `hidden` [N, H] is what the head gave for that token."""
        for each in sequences:
            each.drafts = []
        looks = [(n, Ahead(each)) for n, each in enumerate(sequences) if each.matcher is not None]
        for j in range(count):
            allowed = {n: look.allowed() for n, look in looks}
            rows = [Scores(each, tuple(each.drafts), allowed.get(n)) for n, each in enumerate(sequences)]
            tokens = sample(self._runner.scores(hidden), rows)
            for each, token in zip(sequences, tokens, strict=True):
                each.drafts.append(token)
            if j + 1 < count:
                for n, look in looks:
                    look.take(tokens[n], allowed[n])
                hidden = self._head.look_further(sequences, tokens, hidden, j + 1)


class LookupDrafter:
    """Guesses that the text goes on as it did where its last tokens stood before (Saxena 2023)."""

    def draft(self, sequences: list[Sequence], count: int) -> None:
        """Leave up to `count` guesses in each sequence."""
        for each in sequences:
            each.drafts = lookup(each.tokens, count)


def lookup(tokens: Row[int], count: int) -> list[int]:
    """What followed the latest earlier place of the longest ending of `tokens` that has one."""
    text = np.asarray(tokens, dtype=np.int32).tobytes()
    for length in range(LONGEST, SHORTEST - 1, -1):
        ending, end = text[-4 * length :], len(text) - 4
        if len(text) < 4 * (length + 1):
            continue
        while (place := text.rfind(ending, 0, end)) > 0 and place % 4:
            end = place + len(ending) - 1
        if place >= 0 and place % 4 == 0:
            after = place // 4 + length
            return list(tokens[after : after + count])
    return []
