"""How many tokens to guess ahead: from what rounds have cost and how often guesses were right.

Asked by `engine` once a step. A round, from one choice to the next, takes what its choice costs, all that the
engine does in it included, and gives each answer the accepted guesses plus one. Invariant: numbers are
measured, never assumed; what has not been measured is tried, seldom enough not to matter. Choices are
compared by rounds that are near in time: a machine that is slow for a while, and texts that grow, slow all.
"""

from __future__ import annotations

from itertools import accumulate
from math import log2
from operator import mul

TRIALS = 3  # measurements before a cost is believed: the least of them, as the first ones of a kind are slow
NEWEST = 0.15  # weight of the newest measurement of a cost, at least
FASTER = 0.75  # below so much of what was believed it is believed: no round is fast by accident
DRIFT = 0.3  # and of how long the usual choice takes just now
NEWS = 0.01  # and of the newest judgement of a guess;
PRIOR = 10  # what is believed before the first one counts as so many
RUN = 2  # steps that another choice is tried for: the first of them does not count
HELD = 8  # steps that the best choice is held before it is thought over
AFTER = 3  # rounds of the usual choice after which it is held against it
LOOK = 8  # steps, for each choice, between two looks at another one that is as good as the best,
WORSE = (20, 400)  # and so many times as seldom for one that is worse, and worse squared,
DOUBT = 2  # but not more than so many times the square of how often it was measured
STILL = 0.1  # a look counts if the usual choice takes as long after it as before it, but for so much
CHANGED = 2.5  # times as slow or as fast: what was measured counts as little as it may
MOST = 1.5  # of what was expected; a measurement counts as no more: the round met something else


class Level:
    """What choices cost, one against the other, with about the same number of answers."""

    def __init__(self, choices: int) -> None:
        self.costs, self.counts = [0.0] * choices, [0] * choices
        self.usual: int | None = None  # the best choice as far as is known: the others are measured by it
        self.scale = 1.0  # seconds now, for each unit of cost
        self.since = [0] * choices  # steps since the last look at each
        self._seen: list[tuple[int, float]] = []  # what the last look has met, and not yet compared;
        self._before, self._after = 1.0, 0  # the scale before it, and rounds of the usual choice since

    def learn(self, k: int, seconds: float) -> None:
        """A round took so long."""
        if k == self.usual:
            self.scale += DRIFT * (min(seconds / self.costs[k], MOST * self.scale) - self.scale)
            self._after += 1
            if self._after == AFTER and abs(self.scale / self._before - 1) < STILL:
                for other, took in self._seen:
                    self._count(other, took * 2 / (self.scale + self._before))
            if not 1 / CHANGED < self.scale < CHANGED:
                self._doubt()
        elif not self.known():
            self.counts[k] += 1
            cost = seconds / self.scale
            self.costs[k] = cost if self.counts[k] == 1 else min(cost, self.costs[k])
        else:
            if self._after:
                self._seen, self._before, self._after = [], self.scale, 0
            self._seen.append((k, seconds))

    def _count(self, k: int, cost: float) -> None:
        self.counts[k] += 1
        cost = min(cost, MOST * self.costs[k])
        weight = max(NEWEST, 1 / self.counts[k]) if cost > FASTER * self.costs[k] else 1
        self.costs[k] += weight * (cost - self.costs[k])

    def _doubt(self) -> None:
        """The machine is another, or busy for long; it has slowed all choices, but perhaps not all alike."""
        self.costs, self.counts = [cost * self.scale for cost in self.costs], [TRIALS] * len(self.counts)
        self.scale, self._before, self._seen = 1.0, 1.0, []

    def known(self) -> bool:
        return min(self.counts) >= TRIALS


class Pace:
    """Chooses 0 to `most` guesses. With `fixed`, always `most`."""

    def __init__(self, most: int, *, fixed: bool = False) -> None:
        self.most, self.fixed = most, fixed
        self.right = [0.8] * most  # chance that guess j is right if those before it were
        self._judged = [0] * most
        self._levels: dict[int, Level] = {}
        self._last = self._left = 0  # the last choice, and for how many steps more it is held
        self._answers, self._passed = 0, 0  # for so many, and steps since it was made
        self._steady = False  # whether it was that of the step before too

    def choose(self, answers: int) -> int:
        """Guesses for each of so many answers in the next step."""
        if self.fixed or not self.most:
            return self.most
        self._left, self._passed = self._left - 1, self._passed + 1
        if self._left <= 0 or answers != self._answers:
            k, self._answers = self._decide(self._level(answers)), answers
            self._steady, self._last, self._passed = k == self._last, k, 0
        else:
            self._steady = True
        return self._last

    def took(self, answers: int, k: int, seconds: float) -> None:
        """The round since the last choice, of answers alone, is done: `k` guesses each."""
        if self._steady and not self.fixed:  # else it has replayed what another choice left
            self._level(answers).learn(k, seconds)

    def judged(self, proposed: int, accepted: int) -> None:
        """Of a run of guesses so many were accepted: the next one, if there was one, was wrong."""
        for j in range(min(accepted + 1, proposed)):
            self._judged[j] += 1
            weight = max(NEWS, 1 / (PRIOR + self._judged[j]))
            self.right[j] += weight * ((j < accepted) - self.right[j])

    def _decide(self, level: Level) -> int:
        choices = range(self.most + 1)
        if not level.known():
            self._left = RUN  # in turn, so that a slow spell of the machine hits all or does not count
            return min(choices, key=lambda k: level.counts[k])
        tokens = list(accumulate((1.0, *accumulate(self.right, mul))))  # that a round is worth
        gains = [tokens[k] / level.costs[k] for k in choices]
        best = level.usual = max(choices, key=lambda k: gains[k])
        worse = [gains[best] / gain - 1 for gain in gains]
        seldom = [
            min(1 + WORSE[0] * each + WORSE[1] * each**2, max(1, DOUBT * count**2))
            for each, count in zip(worse, level.counts, strict=True)
        ]
        level.since = [steps + self._passed for steps in level.since]
        level.since[best] = 0
        other = max(choices, key=lambda k: level.since[k] / seldom[k])
        if level.since[other] < LOOK * self.most * seldom[other]:
            self._left = HELD
            return best
        level.since[other], self._left = 0, RUN  # it may have become better
        return other

    def _level(self, answers: int) -> Level:
        """That of about so many; a new one believes what one of at most twice or half as many has learnt."""
        place = round(log2(answers))
        if place not in self._levels:
            made = self._levels[place] = Level(self.most + 1)
            near = [self._levels.get(place + step) for step in (1, -1)]
            for level in near:
                if level is not None and level.known():
                    made.costs, made.counts = level.costs.copy(), [TRIALS] * (self.most + 1)
                    made.scale, made.usual = level.scale, level.usual
                    break
        return self._levels[place]
