"""A rehearsal: made-up requests that an engine answers to nobody, before the first one comes.

Called by `engine` in its thread. What is slow once (kernels that are loaded, tapes that are laid down, memory
touched for the first time) then is no request's matter, and what guesses cost is known. Invariant: nothing of
it stays but that: no text in the cache, no count, nothing about how often guesses are right.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random

from .pace import Pace
from .request import Request, SamplingParams
from .rounds import Rounds
from .sequence import Sequence
from .steps import Steps
from .stream import Stream

PROMPT, LONG = 4, 256  # tokens of a made-up prompt; and of prompt and answer, at most
LEAST, MOST = 12, 120  # steps with so many answers; as many as tell what guesses cost, within these
LONGEST = 30.0  # seconds in all


def rehearse(steps: Steps, alone: Callable[[], bool]) -> None:
    """Answer 1, 4, 16, ... requests at once, as long as `alone` says that nobody waits. To be called before
    there is any other request."""
    config, rounds = steps.config, steps.guesser.rounds
    room = steps.pages.size * config.page_size - steps.scheduler.lookahead
    limit = min(LONG, config.length_limit(steps.runner.model.config), room)
    steps.rehearsing = True
    until, most, going = time.perf_counter() + LONGEST, config.max_sequences, limit > 1
    for answers in sorted({min(1 << n, most) for n in range(0, most.bit_length() + 2, 2)}):
        tried = Rounds(Pace(rounds.pace.most, fixed=rounds.pace.fixed))
        steps.guesser.rounds = tried
        going = going and _answer(steps, answers, limit, lambda: alone() and time.perf_counter() < until)
        rounds.pace.adopt(tried.pace)
    steps.guesser.rounds, steps.rehearsing = rounds, False


def _answer(steps: Steps, answers: int, limit: int, alone: Callable[[], bool]) -> bool:
    """Answer so many requests at once until costs are known -> whether to go on with more."""
    texts = {each.stream: each for each in (_made_up(steps, n, limit) for n in range(answers))}
    for text in texts.values():
        steps.scheduler.add(text)
    pace, made, going = steps.guesser.rounds.pace, 0, alone()
    while going and made < MOST and (made < LEAST or not pace.knows(answers)):
        for stream, output in steps.step():
            if output.finish_reason is not None:
                ended = texts.pop(stream)
                going = going and output.finish_reason != "error"
                again = _made_up(steps, ended.arrival + answers, limit)
                texts[again.stream] = again
                steps.scheduler.add(again)
        made, going = made + 1, going and alone()
    for text in texts.values():
        steps.end(text, "length")
    return going


def _made_up(steps: Steps, number: int, limit: int) -> Sequence:
    """A request of random tokens, of which nothing is kept."""
    random, vocabulary = Random(number), steps.runner.model.config.vocab_size
    prompt = tuple(random.randrange(vocabulary) for _ in range(min(PROMPT, limit - 1)))
    stream = Stream(Request(prompt, SamplingParams(ignore_eos=True)), lambda _: None)
    made = Sequence(stream, number, limit, arrival=number)
    made.tainted = True
    return made
