"""How many tokens are guessed ahead, in simulated worlds whose costs and luck are known."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from statistics import mean

import pytest

from qnext.engine.pace import AFTER, BEFORE, HELD, RUN, TRIALS, Level, Pace

FIRST = RUN * TRIALS  # steps that each choice is tried for


@dataclass
class World:
    """Steps of `answers` answers cost `base`, and `each` for every token; guesses `first` and `each_guess`.
    Guess j is right with `chance[j]`. Times scatter by a tenth; one in a hundred is five times as long."""

    answers: int
    base: float
    each: float
    first: float
    each_guess: float
    chance: tuple[float, ...]

    def run(self, pace: Pace, steps: int, seed: int = 0) -> tuple[float, list[int]]:
        """-> tokens for each unit of time, and what was chosen."""
        random = Random(seed)
        time, tokens, chosen = 0.0, 0, []

        def scattered(cost: float) -> float:
            return cost * random.uniform(0.9, 1.1) * (5 if random.random() < 0.01 else 1)

        for _ in range(steps):
            resting = pace.rest(self.answers)
            k = 0 if resting else pace.choose(self.answers)
            chosen.append(k)
            work = scattered(self.base + self.each * self.answers * (k + 1))
            guess = scattered(self.first + self.each_guess * k) if k else 0.0
            if pace.listens and not resting:
                pace.took(self.answers, k, work + guess)
            time += work + guess
            for _ in range(self.answers):
                right = 0
                while right < k and random.random() < self.chance[right]:
                    right += 1
                tokens += 1 + right
                if k:
                    pace.judged(k, right)
        return tokens / time, chosen

    def fixed(self, k: int, steps: int, seed: int) -> float:
        return self.run(Pace(k, fixed=True), steps, seed)[0]


WORLDS = {
    "guesses are cheap and right": World(1, 10, 0.01, 0.1, 0.1, (0.9,) * 8),
    "guesses are never right": World(1, 10, 0.01, 0.5, 0.5, (0.0,) * 8),
    "guesses are dear": World(8, 10, 1, 2, 2, (0.6, 0.5, 0.4) * 3),
    "two pay": World(4, 10, 0.5, 1, 0.6, (0.7, 0.5, 0.3, 0.2) * 2),
    "only the first is right": World(1, 10, 0.1, 1, 1, (0.8, 0.1, 0.1, 0.1) * 2),
    "many answers": World(16, 10, 0.3, 1, 1, (0.7, 0.6, 0.5, 0.4) * 2),
}


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("most", [1, 3, 8])
def test_the_choice_is_as_good_as_the_best_fixed_one(name: str, most: int) -> None:
    world, seeds = WORLDS[name], range(3)
    steps = 1000 * (most + 1)  # every choice has to be tried, and that to be earned back
    best = max(mean(world.fixed(k, steps, seed) for seed in seeds) for k in range(most + 1))
    assert mean(world.run(Pace(most), steps, seed)[0] for seed in seeds) > 0.98 * best


def test_guesses_that_never_pay_are_hardly_made() -> None:
    _, chosen = WORLDS["guesses are never right"].run(Pace(3), 3000)
    assert sum(chosen[500:]) < 0.1 * len(chosen[500:])


@pytest.mark.parametrize("answers", [1, 4, 16])
def test_it_notices_when_luck_changes(answers: int) -> None:
    lucky = World(answers, 10, 0.3, 0.1, 0.3, (0.9,) * 3)
    unlucky = World(answers, 10, 0.3, 0.1, 0.3, (0.0,) * 3)
    pace = Pace(3)
    for world, wanted in ((lucky, {2, 3}), (unlucky, {0}), (lucky, {2, 3})):
        _, chosen = world.run(pace, 2000)
        last = chosen[1000:]
        assert sum(k in wanted for k in last) > 0.9 * len(last)


def test_the_less_luck_could_win_the_more_seldom_it_looks() -> None:
    looks = []
    for dear in (2.2, 5, 8):  # at most four tokens for 2.2, 3.3 and 4.4 steps
        _, chosen = World(1, 8, 1, dear / 2, dear, (0.0,) * 3).run(Pace(3), 40_000)
        looks.append(sum(map(bool, chosen[10_000:])))
    assert looks[0] > 1.5 * looks[1] > 1.5 * 1.5 * looks[2] > 0


def test_it_notices_when_guesses_become_dear() -> None:
    cheap = World(4, 10, 0.01, 0.1, 0.1, (0.8,) * 3)
    dear = World(4, 10, 5, 0.1, 0.1, (0.4,) * 3)
    pace = Pace(3)
    for world, wanted in ((cheap, 3), (dear, 0)):
        _, chosen = world.run(pace, 1000)
        assert chosen[500:].count(wanted) > 0.9 * 500


def test_each_number_of_answers_has_its_own_choice() -> None:
    """A guess for one answer rides along; for fifty it does not."""
    pace = Pace(2)
    for _ in range(20):
        World(1, 10, 0.01, 0.1, 0.1, (0.5,) * 2).run(pace, 20)
        World(50, 1, 1, 1, 50, (0.5,) * 2).run(pace, 20)
    assert [pace.choose(1) for _ in range(3 * HELD)][2 * HELD :] == [2] * HELD
    assert [pace.choose(50) for _ in range(3 * HELD)][2 * HELD :] == [0] * HELD


def test_an_end_that_makes_room_for_another_is_no_other_number_of_answers() -> None:
    """Of two answers one ends now and then, and the other is alone for a step or two."""
    pace = Pace(2)
    for _ in range(200):
        World(2, 1, 1, 1, 50, (0.5,) * 2).run(pace, HELD - 2)
        World(1, 10, 0.01, 0.1, 0.1, (0.5,) * 2).run(pace, 2)
    chosen = []
    for _ in range(100):
        chosen += World(2, 1, 1, 1, 50, (0.5,) * 2).run(pace, HELD - 2)[1]
        chosen += World(1, 10, 0.01, 0.1, 0.1, (0.5,) * 2).run(pace, 2)[1]
    assert chosen.count(0) > 0.95 * len(chosen)


TRIAL = [0] * (AFTER + 1) + [1] * RUN + [0] * (AFTER + 1) + [2] * RUN


def test_what_was_not_measured_is_tried_first_each_between_rounds_of_none() -> None:
    pace, tried = Pace(2), []
    for _ in range(TRIALS * len(TRIAL)):
        tried.append(k := pace.choose(5))
        pace.took(5, k, 1.0)
    assert tried == TRIALS * TRIAL


def test_a_trial_in_a_slow_spell_is_made_again() -> None:
    """The machine is half as fast for a while, which begins or ends while a number is tried."""
    pace, tried, costs = Pace(2), [], (1.0, 1.9, 2.8)
    for step in range(40 * len(TRIAL)):
        tried.append(k := pace.choose(1))
        pace.took(1, k, costs[k] * (2 if step % 25 < 8 else 1))
        if k:
            pace.judged(k, k // 2)  # the first is right as long as it is the only one: 1 for 1.9
    assert tried[200:].count(0) > 0.9 * len(tried[200:])


def test_where_trials_fail_again_and_again_they_become_rare() -> None:
    pace, tried, random = Pace(2), [], Random(0)
    for _ in range(2000):
        tried.append(k := pace.choose(1))
        pace.took(1, k, random.choice((1, 1.6)) * (k + 1))
    assert tried[1000:].count(0) > 0.85 * 1000


def test_what_is_known_of_as_many_is_believed_of_nearly_as_many() -> None:
    pace, world = Pace(3), World(16, 10, 1, 1, 50, (0.5,) * 3)
    world.run(pace, 100)
    assert [pace.choose(n) for n in (14, 12, 9)] == [0, 0, 0]
    _, chosen = World(2, 10, 1, 1, 50, (0.5,) * 3).run(pace, 2 * HELD + 4 * RUN)
    seen = chosen[chosen.index(1) - AFTER - 1 :][: len(TRIAL)]
    assert seen == TRIAL


def test_the_first_round_of_another_choice_does_not_count() -> None:
    """It replays what the choice before it left."""
    pace, chosen = Pace(1), []
    for _ in range(400):
        last, k = (chosen or [0])[-1], pace.choose(4)
        pace.took(4, k, 1.0 + 0.3 * k + 50 * (k != last))
        pace.judged(k, k)
        chosen.append(k)
    assert chosen[100:].count(1) > 0.9 * 300


@pytest.mark.parametrize("cold", range(4))
def test_a_choice_that_was_slow_at_first_is_not_given_up(cold: int) -> None:
    """What runs for the first time takes longer, whatever it is; here one choice does so throughout its
    trial."""
    world, pace, random = World(1, 10, 1, 3, 2, (0.7, 0.6, 0.5)), Pace(3), Random(5)
    met, chosen = [0] * 4, []
    for _ in range(2000):
        k = pace.choose(1)
        met[k] += 1
        chosen.append(k)
        slow = 3 if k == cold and met[k] <= FIRST else 1
        pace.took(1, k, slow * (world.base + k + (world.first + world.each_guess * k if k else 0)))
        if k:
            pace.judged(k, next((j for j in range(k) if random.random() >= world.chance[j]), k))
    best = max(range(4), key=lambda k: world.fixed(k, 5000, 0))
    assert chosen[600:].count(best) > 0.8 * len(chosen[600:])


def tried(*costs: float) -> Level:
    """What is known after the trials of choices that cost so much."""
    level = Level(len(costs))
    for _ in range(AFTER):
        level.learn(0, costs[0])
    for k in [*range(1, len(costs))] * TRIALS:
        level.learn(k, costs[k])
        for _ in range(AFTER):
            level.learn(0, costs[0])
    assert level.known()
    return level


def test_a_cost_is_the_middle_of_its_measurements_and_surer_with_each() -> None:
    level = tried(1.0, 1.2)
    unsure = level.uncertainty(1)
    for seconds in (1.2, 1.2, 1.2, 1.7, 1.2):  # one round has met something else
        level.learn(1, seconds)
        for _ in range(AFTER):
            level.learn(0, 1.0)
    assert level.costs == [1.0, 1.2]
    assert level.uncertainty(1) < 0.7 * unsure


@pytest.mark.parametrize(("took", "believed"), [(0.7, 1.0), (0.3, 0.3)])
def test_only_a_round_that_is_far_faster_is_believed_at_once(took: float, believed: float) -> None:
    """The first may be a machine that sped up just then, the second can only be a cost that was wrong."""
    level = tried(1.0, 1.0)
    for k in (1, *[0] * AFTER):
        level.learn(k, took if k else 1.0)
    assert level.costs[1] == pytest.approx(believed)


def test_where_nothing_is_guessed_it_hardly_listens_and_hardly_thinks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pace, world, listened, rested, thought = Pace(3), WORLDS["guesses are dear"], [], [], list[int]()
    decide, rest = Pace._decide, Pace.rest

    def resting(pace: Pace, answers: int) -> bool:
        listened.append(pace.listens)
        rested.append(rest(pace, answers))
        return rested[-1]

    monkeypatch.setattr(Pace, "_decide", lambda *given: (thought.append(len(rested)), decide(*given))[1])
    monkeypatch.setattr(Pace, "rest", resting)
    world.run(pace, 2000)
    del listened[:], rested[:], thought[:]
    _, chosen = world.run(pace, 4000)
    assert any(chosen) and chosen.count(0) > 0.98 * len(chosen)
    assert sum(rested) > 0.7 * len(rested) and len(thought) < len(rested) / HELD / 3
    assert not any(listen and rest for listen, rest in zip(listened, rested, strict=True))
    looks = [i for i, k in enumerate(chosen) if k and not chosen[i - 1] and i > BEFORE]
    for look in looks:  # each has something to be held against, and the head knows what there was before it
        assert sum(listened[look - BEFORE : look]) >= BEFORE / 2 and not any(rested[look - BEFORE + 1 : look])


def test_it_does_not_rest_for_another_number_of_answers() -> None:
    pace = Pace(3)
    WORLDS["guesses are dear"].run(pace, 3000)
    answers = WORLDS["guesses are dear"].answers
    while not pace.rest(answers):
        pace.choose(answers)
    assert not pace.rest(answers + 1) and pace.rest(answers)
    assert not Pace(3, fixed=True).rest(1)


def test_more_answers_are_thought_over_however_long_the_choice_was_to_stand() -> None:
    pace = Pace(2)
    World(50, 1, 1, 1, 50, (0.5,) * 2).run(pace, 3000)
    World(1, 10, 0.01, 0.1, 0.1, (0.5,) * 2).run(pace, 1000)
    World(50, 1, 1, 1, 50, (0.5,) * 2).run(pace, 40)
    assert [pace.choose(1) for _ in range(3 * HELD)][2 * HELD :] == [2] * HELD


def test_fixed_and_none() -> None:
    assert {Pace(4, fixed=True).choose(n) for n in range(1, 50)} == {4}
    assert {Pace(0).choose(n) for n in range(1, 50)} == {0}
    assert not Pace(0).listens and not Pace(4, fixed=True).listens


def test_chances_are_learnt_from_what_was_judged() -> None:
    pace, random = Pace(3), Random(0)
    for _ in range(2000):
        right = next((j for j in range(3) if random.random() >= (0.9, 0.5, 0.1)[j]), 3)
        pace.judged(3, right)
    assert pace.right == pytest.approx([0.9, 0.5, 0.1], abs=0.15)


def test_a_machine_that_is_slow_at_times_does_not_mislead() -> None:
    """Spells in which all costs double or more: what is tried in one must not look bad for that."""
    world, random, slow = World(4, 10, 0.5, 1, 0.6, (0.7, 0.5, 0.3)), Random(1), 1.0
    pace, chosen = Pace(3), []
    for step in range(3000):
        slow = random.uniform(1, 2.2) if step % 40 == 0 else slow
        k = pace.choose(4)
        chosen.append(k)
        guess = world.first + world.each_guess * k if k else 0.0
        pace.took(4, k, slow * (world.base + world.each * 4 * (k + 1) + guess))
        for _ in range(4):
            pace.judged(k, next((j for j in range(k) if random.random() >= world.chance[j]), k))
    best = max(range(4), key=lambda k: world.fixed(k, 5000, 0))
    assert chosen[500:].count(best) > 0.75 * len(chosen[500:])


def test_a_guess_that_is_a_little_better_is_made_though_its_cost_is_uncertain() -> None:
    pace = Pace(1)
    level = pace._level(2)
    level.believe([1.0, 1.6])
    pace.right = [0.68]  # 1.68 tokens a round of 1.6
    assert level.uncertainty(1) > 1.68 / 1.6 - 1
    assert pace.choose(2) == 1
