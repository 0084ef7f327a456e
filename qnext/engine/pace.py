"""How many tokens to guess ahead: from what steps have cost and how often guesses were right.

Asked by `engine` once a step. A step of n answers with k guesses each costs `work[n, k]` to verify and
`guess[n, k]` to make, and gives each answer the accepted guesses plus one. Invariant: numbers are measured,
never assumed; what has not been measured is tried, seldom enough not to matter.
"""

from __future__ import annotations

from itertools import accumulate
from operator import mul

SMOOTHING = 0.1  # weight of the newest measurement
PROBE = 100  # steps between two looks at another number of guesses
MOST = 1.25  # of the mean; a measurement counts as no more
TRIALS = 2  # measurements before a cost is believed


class Mean:
    """A running mean that leans to the new, and forgives single outliers: a step that took much longer than
    usual met something else on the machine."""

    def __init__(self) -> None:
        self.value, self.count = 0.0, 0

    def add(self, value: float) -> None:
        self.count += 1
        if self.count <= TRIALS:
            self.value = value if self.count == 1 else min(self.value, value)
        else:
            self.value += SMOOTHING * (min(value, MOST * self.value) - self.value)


class Pace:
    """Chooses 0 to `most` guesses. With `fixed`, always `most`."""

    def __init__(self, most: int, *, fixed: bool = False) -> None:
        self.most, self.fixed = most, fixed
        self.right = [0.8] * most  # chance that guess j is right if those before it were
        self._work: dict[tuple[int, int], Mean] = {}
        self._guess: dict[tuple[int, int], Mean] = {}
        self._steps = 0

    def choose(self, answers: int) -> int:
        """Guesses for each of so many answers in the next step."""
        if self.fixed or not self.most:
            return self.most
        self._steps += 1
        for k in range(self.most + 1):
            if self._known(answers, k) < TRIALS:
                return k
        best = max(range(self.most + 1), key=lambda k: self.gain(answers, k))
        if self._steps % PROBE == 0:  # what was not used for long may have become better
            return min(self.most, best + 1) if self._steps % (2 * PROBE) else max(0, best - 1)
        return best

    def gain(self, answers: int, k: int) -> float:
        """Tokens a second, for each answer."""
        cost = self._work[answers, k].value + (self._guess[answers, k].value if k else 0.0)
        tokens: float = 1 + sum(accumulate(self.right[:k], mul))
        return tokens / cost

    def worked(self, answers: int, k: int, seconds: float) -> None:
        """A step over answers alone was computed, `k` guesses each."""
        self._work.setdefault((answers, k), Mean()).add(seconds)

    def guessed(self, answers: int, k: int, seconds: float) -> None:
        """`k` guesses for each answer were made."""
        self._guess.setdefault((answers, k), Mean()).add(seconds)

    def judged(self, proposed: int, accepted: int) -> None:
        """Of a run of guesses so many were accepted: the next one, if there was one, was wrong."""
        for j in range(min(accepted + 1, proposed)):
            self.right[j] += 0.02 * ((j < accepted) - self.right[j])

    def _known(self, answers: int, k: int) -> int:
        unknown = Mean()
        work = self._work.get((answers, k), unknown).count
        return min(work, self._guess.get((answers, k), unknown).count) if k else work
