"""Which tokens a text holds, and how often the answer used each: what the penalties of sampling look at.

Kept by `sequence`, read by `sampler`. Invariant: one entry a token, in the order of first sight.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .request import Request


class History:
    """`ids` and `times` are views of the entries: a token of the prompt that was never answered has 0."""

    def __init__(self, prompt: Sequence[int]) -> None:
        seen = np.unique(np.asarray(prompt, dtype=np.int64))
        self._ids = np.concatenate((seen, np.zeros(256, np.int64)))
        self._times = np.zeros(len(self._ids), np.float32)
        self._place = {token: place for place, token in enumerate(seen.tolist())}

    @classmethod
    def of(cls, request: Request) -> History | None:
        """None where no penalty asks for it."""
        wish = request.sampling
        repeats = wish.repetition_penalty != 1
        if not repeats and not wish.presence_penalty and not wish.frequency_penalty:
            return None
        return cls(request.prompt if repeats else ())

    @property
    def ids(self) -> np.ndarray:
        return self._ids[: len(self._place)]

    @property
    def times(self) -> np.ndarray:
        return self._times[: len(self._place)]

    def add(self, token: int) -> None:
        """The answer used a token."""
        place = self._place.setdefault(token, len(self._place))
        if place == len(self._ids):
            self._ids = np.concatenate((self._ids, np.zeros_like(self._ids)))
            self._times = np.concatenate((self._times, np.zeros_like(self._times)))
        self._ids[place] = token
        self._times[place] += 1

    def ahead(self, drafts: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """`ids` and `times` as they would be after some more tokens."""
        if not drafts:
            return self.ids, self.times
        times = self.times.copy()
        fresh: dict[int, int] = {}
        for token in drafts:
            place = self._place.get(token)
            if place is None:
                fresh[token] = fresh.get(token, 0) + 1
            else:
                times[place] += 1
        ids = np.concatenate((self.ids, np.fromiter(fresh, np.int64, len(fresh))))
        return ids, np.concatenate((times, np.fromiter(fresh.values(), np.float32, len(fresh))))
