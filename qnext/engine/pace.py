"""How many tokens to guess ahead: from what rounds have cost and how often guesses were right.

Asked by `engine` once a step. A round, from one choice to the next, takes what its choice costs, all that the
engine does in it included, and gives each answer the accepted guesses plus one. Invariant: numbers are
measured, never assumed; what has not been measured is tried, seldom enough not to matter. Choices are
compared by rounds that are near in time: a machine that is slow for a while, and texts that grow, slow all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from math import log2, sqrt
from operator import mul
from statistics import median

TRIALS = 3  # measurements before a cost is believed
WINDOW = 48  # newest measurements of a cost, of which the middle one is believed
FASTER = 0.6  # below so much of what was believed the newest one is: no round is as fast by accident
DRIFT = 0.3  # weight of the newest round in how long the usual choice takes just now
NEWS = 0.01  # and of the newest judgement of a guess, less where each step has many of them;
PRIOR = 10  # what is believed before the first one counts as so many
RUN = 2  # steps that another choice is tried for: the first of them does not count,
LONGER, MORE = 0.5, 6  # and as many more as it is so much worse by, up to some: the closer, the cheaper and
# the more in need of measuring it is, and to wake the head has cost more than a step
HELD = 8  # steps that the best choice is held before it is thought over,
NEAR = 3  # of which so many last ones are measured: to measure costs something too
BEFORE = 32  # steps before a look that are measured where those before were not, and not rested in: the
# head then knows of as many hidden states as it ever keeps when it rests
AFTER = 3  # rounds of the usual choice after which a look is held against it
LOOK = 16  # steps, for each choice, between two looks at another one that may be as good as the best; as
UNSURE = 0.1  # many more as its cost is less uncertain than so much, squared: less can be won by it;
SURE = 2  # and so many times as seldom for one that is worse by what its cost is uncertain by, squared,
SELDOM = 40  # but not more than so many times, nor than the square of `TRIALS` before the first look;
WORTH = 0.75  # of what the best brings, to be won were all guesses right: where it is less, looks are as much
LITTLE = 0.1  # more seldom, but not beyond so much less
STAY = 1.01  # another one must be so many times as good as the best was: it takes a step or two to change.
NOISE = (0.1, 0.05)  # what a cost scatters by before any was compared, and the newest comparison's weight
MIDDLE = 1.5  # a deviation of the scatter in mean distances from the middle, about
STILL = 0.1  # a look counts if the usual choice takes as long after it as before it, but for so much
CHANGED = 2.5  # times as slow or as fast: what was measured counts as little as it may
MOST = 1.5  # of what was expected; a measurement counts as no more: the round met something else


class Level:
    """What choices cost, one against the other, with about the same number of answers."""

    def __init__(self, choices: int) -> None:
        self.costs, self.counts = [0.0] * choices, [TRIALS] + [0] * (choices - 1)
        self.usual = 0  # the best choice as far as is known: others are measured between rounds of it
        self.tries = 0  # looks at the others before all were known
        self.scale = 1.0  # seconds now, for each unit of cost
        self.since = [0] * choices  # steps since the last look at each
        self._met = [deque[float](maxlen=WINDOW) for _ in range(choices)]
        self._noise = NOISE[0]
        self._seen: list[tuple[int, float]] = []  # what the last look has met, and not yet compared;
        self._before, self._after = 1.0, 0  # the scale before it, and rounds of the usual choice since

    def learn(self, k: int, seconds: float) -> bool:
        """A round took so long -> whether costs are others now."""
        if k != self.usual:
            if self._after:
                self._seen, self._before, self._after = [], self.scale, 0
            self._seen.append((k, seconds))
            return False
        if not self.costs[k]:
            self._set(k, seconds)
        self.scale += DRIFT * (min(seconds / self.costs[k], MOST * self.scale) - self.scale)
        self._after += 1
        counts = self._after == AFTER and abs(self.scale / self._before - 1) < STILL
        for other, took in self._seen if counts else ():
            self._count(other, took * 2 / (self.scale + self._before))
        doubts = not 1 / CHANGED < self.scale < CHANGED
        if doubts:
            self._doubt()
        return counts or doubts

    def _count(self, k: int, cost: float) -> None:
        self.counts[k] += 1
        if not self.costs[k] or cost < FASTER * self.costs[k]:
            return self._set(k, cost)
        off = min(abs(cost / self.costs[k] - 1), MOST - 1)
        self._noise += NOISE[1] * (MIDDLE * off - self._noise)
        self._met[k].append(cost)
        self.costs[k] = median(self._met[k])

    def _set(self, k: int, cost: float) -> None:
        self.costs[k] = cost
        self._met[k].clear()
        self._met[k].append(cost)

    def _doubt(self) -> None:
        """The machine is another, or busy for long; it has slowed all choices, but perhaps not all alike."""
        costs = [cost * self.scale for cost in self.costs]
        if self.known():
            self.believe(costs)
        else:
            self.costs = costs
        self.scale, self._before, self._seen = 1.0, 1.0, []

    def believe(self, costs: Sequence[float]) -> None:
        """These are the costs, as far as is known, measured as seldom as may be."""
        self.counts = [TRIALS] * len(costs)
        for k, cost in enumerate(costs):
            self._set(k, cost)

    def uncertainty(self, k: int) -> float:
        """Of the cost of a choice that is known, as a share of it."""
        return self._noise / sqrt(len(self._met[k]))

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
        self._best = 0  # the last one that was no look
        self._answers, self._most = 0, 0  # now, and the most since then
        self._passed = 0  # steps since it was made
        self._calm = 0  # and how many may pass until there is a reason to think it over, at its own level
        self._place: Level | None = None
        self._settled = 0  # the number of answers that it was last thought over for
        self._steady = False  # whether it was that of the step before too
        self._moved = False  # whether the one before it was another

    def choose(self, answers: int) -> int:
        """Guesses for each of so many answers in the next step."""
        if self.fixed or not self.most:
            return self.most
        self._left, self._passed = self._left - 1, self._passed + 1
        self._answers, self._most = answers, max(self._most, answers)
        self._steady = True
        if self._left <= 0:  # not for fewer answers at once: an end makes room for another
            level, self._settled, self._most = self._level(self._most), self._most, answers
            if self._passed < self._calm and level is self._place:
                self._left = HELD
            else:
                k, self._place = self._decide(level), level
                self._steady = k == self._last
                self._moved, self._last, self._passed = not self._steady, k, 0
        return self._last

    def rest(self, answers: int) -> bool:
        """Whether the next step makes no guesses and a look is far, so that `choose` need not be asked."""
        if answers != self._settled or not self._calm or self.listens:
            return False
        self._passed += 1
        return True

    @property
    def listens(self) -> bool:
        """Whether what the round takes is of use: around a look, perhaps, and while costs are unknown."""
        if self.fixed or not self.most:
            return False
        soon = self._passed + BEFORE >= self._calm if self._calm else self._left <= NEAR
        return soon or (self._moved and self._passed <= AFTER + 1)

    def took(self, answers: int, k: int, seconds: float) -> None:
        """The round since the last choice, of answers alone, is done: `k` guesses each."""
        # else it has replayed what another choice left
        if self._steady and not self.fixed and self._level(answers).learn(k, seconds):
            self._calm = 0

    def knows(self, answers: int) -> bool:
        """Whether there is nothing that must be measured before the best choice is known."""
        return self.fixed or not self.most or self._level(answers).known()

    def adopt(self, other: Pace) -> None:
        """Believe what another one has measured in peace, but nothing of what became of its guesses."""
        for place, level in other._levels.items():
            if level.known():
                level.counts = [count + 1 for count in level.counts]  # a first look need not come soon
                self._levels[place] = level

    def judged(self, proposed: int, accepted: int) -> None:
        """Of a run of guesses so many were accepted: the next one, if there was one, was wrong."""
        self._calm = 0
        for j in range(min(accepted + 1, proposed)):
            self._judged[j] += 1
            often = self._answers if j < self._best else 1
            weight = max(NEWS / max(often, 1) ** 0.5, 1 / (PRIOR + self._judged[j]))
            self.right[j] += weight * ((j < accepted) - self.right[j])

    def _decide(self, level: Level) -> int:
        choices, self._calm = range(self.most + 1), 0
        if not level.known():
            return self._try(level)
        tokens = list(accumulate((1.0, *accumulate(self.right, mul))))  # that a round is worth
        gains = [tokens[k] / level.costs[k] for k in choices]
        best = level.usual = max(choices, key=lambda k: gains[k] * (STAY if k == level.usual else 1))
        seldom = [1.0] * len(choices)
        for k in choices:
            unsure, won = level.uncertainty(k), (k + 1) / level.costs[k] / gains[best] - 1
            most = SELDOM / min(max(won / WORTH, LITTLE), 1) if level.counts[k] > TRIALS else TRIALS**2
            worse = max(0.0, gains[best] / gains[k] - 1) / unsure
            seldom[k] = min((1 + SURE * worse**2) * max(1, (UNSURE / unsure) ** 2), most)
        level.since = [steps + self._passed for steps in level.since]
        level.since[best] = 0
        other = max(choices, key=lambda k: level.since[k] / seldom[k])
        if level.since[other] < LOOK * self.most * seldom[other]:
            self._left, self._best = HELD, best
            if not best:  # nothing is learnt before the next look
                self._calm = min(int(LOOK * self.most * seldom[k]) - level.since[k] for k in choices[1:])
            return best
        gap = gains[best] / gains[other] - 1
        level.since[other] = 0  # it may have become better
        self._left = RUN + int(min(MORE, LONGER / max(gap, NEWS)))
        return other

    def _try(self, level: Level) -> int:
        """What is not known yet in turn, and in between what the others are measured by: for longer and
        longer, up to a limit, where the machine is too restless."""
        level.tries += 1
        rounds, odd = divmod(level.tries, 2)
        self._best = level.usual
        if odd:
            self._left = (AFTER + 1) * min(1 + rounds // (2 * TRIALS * self.most), SELDOM)
            return level.usual
        self._left = RUN
        return min((k for k in range(self.most + 1) if k != level.usual), key=lambda k: level.counts[k])

    def _level(self, answers: int) -> Level:
        """That of about so many; a new one believes what one of at most twice or half as many has learnt."""
        place = round(log2(answers))
        if place not in self._levels:
            made = self._levels[place] = Level(self.most + 1)
            near = [self._levels.get(place + step) for step in (1, -1)]
            for level in near:
                if level is not None and level.known():
                    made.believe(level.costs)
                    made.scale, made.usual = level.scale, level.usual
                    break
        return self._levels[place]
