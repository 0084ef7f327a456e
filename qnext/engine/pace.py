"""How many tokens to guess ahead: from what steps have cost and how often guesses were right.

Asked by `engine` once a step. A step of n answers with k guesses each costs `work[n, k]` to verify and
`guess[n, k]` to make, and gives each answer the accepted guesses plus one. Invariant: numbers are measured,
never assumed; what has not been measured is tried, seldom enough not to matter. Costs are kept as
the usual seconds: a machine that is slow for a while slows every choice alike, which is not the fault of one.
"""

from __future__ import annotations

from itertools import accumulate
from operator import mul

TRIALS = 2  # measurements before a cost is believed
NEWEST = 0.2  # weight of the newest measurement of a choice that is not the usual one
DRIFT = 0.3  # and in how slow the machine is just now
PROBE = 24  # steps between two looks at another number of guesses
CLOSE = 0.9  # of the best; a choice below that is looked at more seldom,
FAR = 12  # so many times
CHANGED = 2.5  # times as slow or as fast: everything is measured anew
MOST = 1.5  # of what was expected; a measurement counts as no more: the step met something else


class Mean:
    """A running mean, the least of the first few measurements at first."""

    def __init__(self) -> None:
        self.value, self.count = 0.0, 0

    def add(self, value: float) -> None:
        self.count += 1
        if self.count <= TRIALS:
            self.value = value if self.count == 1 else min(self.value, value)
        else:
            self.value += NEWEST * (min(value, MOST * self.value) - self.value)


class Pace:
    """Chooses 0 to `most` guesses. With `fixed`, always `most`."""

    def __init__(self, most: int, *, fixed: bool = False) -> None:
        self.most, self.fixed = most, fixed
        self.right = [0.8] * most  # chance that guess j is right if those before it were
        self._work: dict[tuple[int, int], Mean] = {}
        self._guess: dict[tuple[int, int], Mean] = {}
        self._usual: dict[int, int] = {}  # the best choice as far as is known: the others are measured by it
        self._slow = 1.0  # what a step costs now, of what it usually costs
        self._steps = 0

    def choose(self, answers: int) -> int:
        """Guesses for each of so many answers in the next step."""
        if self.fixed or not self.most:
            return self.most
        self._steps += 1
        choices = range(self.most + 1)
        least = min(choices, key=lambda k: self._known(answers, k))
        if self._known(answers, least) < TRIALS:
            return least
        best = self._usual[answers] = max(choices, key=lambda k: self.gain(answers, k))
        looks, rest = divmod(self._steps, PROBE)
        if rest == 0:  # what was not used for long may have become better
            other = (best + 1 + looks % self.most) % (self.most + 1)
            close = self.gain(answers, other) > CLOSE * self.gain(answers, best)
            return other if close or looks // self.most % FAR == 0 else best
        return best

    def gain(self, answers: int, k: int) -> float:
        """Tokens a second, for each answer."""
        cost = self._work[answers, k].value + (self._guess[answers, k].value if k else 0.0)
        tokens: float = 1 + sum(accumulate(self.right[:k], mul))
        return tokens / cost

    def worked(self, answers: int, k: int, seconds: float) -> None:
        """A step over answers alone was computed, `k` guesses each."""
        mean = self._work.setdefault((answers, k), Mean())
        if k == self._usual.get(answers):
            self._slow += DRIFT * (min(seconds / mean.value, MOST * self._slow) - self._slow)
            if not 1 / CHANGED < self._slow < CHANGED:
                self._work, self._guess, self._usual, self._slow = {}, {}, {}, 1.0
        else:
            mean.add(seconds / self._slow)

    def guessed(self, answers: int, k: int, seconds: float) -> None:
        """`k` guesses for each answer were made."""
        self._guess.setdefault((answers, k), Mean()).add(seconds / self._slow)

    def judged(self, proposed: int, accepted: int) -> None:
        """Of a run of guesses so many were accepted: the next one, if there was one, was wrong."""
        for j in range(min(accepted + 1, proposed)):
            self.right[j] += 0.02 * ((j < accepted) - self.right[j])

    def _known(self, answers: int, k: int) -> int:
        unknown = Mean()
        work = self._work.get((answers, k), unknown).count
        return min(work, self._guess.get((answers, k), unknown).count) if k else work
