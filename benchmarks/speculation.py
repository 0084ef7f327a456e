"""Whether guessing ahead ever costs: tokens a second with 0 to 3 guesses, and with as many as pays.

    python benchmarks/speculation.py [MODEL] [seconds] [batch …]

Engines have rehearsed, as a server's do before the first request. They answer the same prompts, each with
as many answers as the batch has places, on the same weights in memory, as where these lie moves a small
model's speed by several per cent. So does where an engine's own memory lies: there are four engines of each
kind, made in one order and the opposite one in turn. They take turns of a few tokens for each answer, a
fifth of a second or more, and so are always at the same place of the same texts: a shared machine's speed
swings by half within seconds, and some texts are guessed twice as well as others. Shorter turns are more
about what each finds in the caches after others than about guesses. Their order is drawn anew each time. A
fixed number that is far behind after a fifth of the time plays no more, and leaves the rest to those that
may be the best. Prints one JSON line a batch size, after `seconds` of rounds of turns: tokens of all turns
over their seconds, and what `adaptive` reaches of the best fixed number. The best of several noisy figures
is good by luck too: `adaptive_over_best_apart` is held against the number that the other half of the rounds
finds best, and `apart_within` says where it lies in nine of ten resamplings of the rounds.
"""

from __future__ import annotations

import gc
import json
import platform
import subprocess
import sys
import time
from itertools import cycle
from random import Random
from statistics import mean, quantiles

import torch

from qnext import EngineConfig, SamplingParams
from qnext.engine.rehearsal import rehearse
from qnext.engine.request import Request
from qnext.engine.sequence import Sequence
from qnext.engine.steps import Steps
from qnext.engine.stream import Stream, deliver
from qnext.kernels.cpu.team import leave_cores_to_kernels
from qnext.model.network import Network, load_network
from qnext.models import locate
from qnext.text.chat import Chat

BATCHES = (1, 2, 4, 8, 16)
KINDS = {"0": (0, True), "1": (1, True), "2": (2, True), "3": (3, True), "adaptive": (3, False)}
FIXED = [name for name, (_, fixed) in KINDS.items() if fixed]
QUESTIONS = (
    "Tell me a story about a cat.",
    "What is the capital of France?",
    "Write a short story about the sea.",
    "Hello, who are you?",
)
LENGTHS = (80, 213, 160, 101, 240, 133, 187)
WAVES = 4  # prompts for each place
TURN, EACH = 16, 4  # tokens at least, and for each place; and as many more
LONG = 0.2  # as take so many seconds without guesses
PROBE = 256  # tokens that tell how long a turn should be
WARM_UP = 6  # rounds that do not count: kernels, kept prompts, and what guesses cost
ENGINES = 4  # of each kind
BEHIND = 0.93  # of the best fixed number: one that reaches less plays no more
TOLD = 0.2  # of the time, before that is judged

Turn = tuple[int, float]  # tokens, and seconds


def requests(chat: Chat, count: int) -> list[Request]:
    found = []
    for i in range(count):
        prompt = chat.encode([{"role": "user", "content": f"{QUESTIONS[i % 4]} {i}"}])
        sampling = SamplingParams(temperature=0, max_tokens=LENGTHS[i % len(LENGTHS)], ignore_eos=True)
        found.append(Request(prompt.ids, sampling, chat.eos_token_ids))
    return found


class Player:
    """An engine without its thread, always full."""

    def __init__(self, network: Network, config: EngineConfig, asked: list[Request]) -> None:
        self._steps, self._asked, self._count = Steps(network, config, ""), cycle(asked), 0
        self.tokens = self.drafted = self.accepted = 0
        self._ended = 0.0
        rehearse(self._steps, alone=lambda: True)
        for _ in range(config.max_sequences):
            self._add()

    def _add(self) -> None:
        stream = Stream(next(self._asked), lambda _: None)
        self._steps.scheduler.add(Sequence(stream, 0, 1 << 20, arrival=self._count))
        self._count += 1

    def play(self, until: int) -> Turn:
        """Go on to so many tokens in all. Others' turns are no part of the round that they fell into."""
        before, begun = self.tokens, time.perf_counter()
        self._steps.guesser.rounds._begun += begun - self._ended
        while self.tokens < until:
            told = self._steps.step()
            deliver(told)
            for _, output in told:
                self.tokens += len(output.token_ids)
                if output.facts is not None:
                    self.drafted += output.facts.drafted_tokens
                    self.accepted += output.facts.accepted_tokens
                    self._add()
        self._ended = time.perf_counter()
        return self.tokens - before, self._ended - begun


def turn_of(player: Player, batch: int) -> int:
    """Tokens of a turn, by what an engine without guesses does with its first `PROBE`."""
    player.play(PROBE // 2)
    return max(TURN, EACH * batch, round(LONG * speed([player.play(PROBE)])))


def speed(turns: list[Turn]) -> float:
    return sum(tokens for tokens, _ in turns) / sum(seconds for _, seconds in turns)


def apart(found: dict[str, list[Turn]]) -> float:
    """What `adaptive` reaches of the best fixed number, chosen by other rounds than those compared."""
    ratios, count = [], len(found["adaptive"])
    played = [name for name in FIXED if len(found[name]) == count]
    for half in (0, 1):
        best = max(played, key=lambda name: speed(found[name][1 - half :: 2]))
        ratios.append(speed(found["adaptive"][half::2]) / speed(found[best][half::2]))
    return mean(ratios)


def within(found: dict[str, list[Turn]], draws: int = 300) -> tuple[float, float]:
    """Where `apart` lies when as many rounds are drawn from these, nine times of ten."""
    random, count = Random(0), len(found["adaptive"])
    whole = {name: turns if len(turns) == count else [] for name, turns in found.items()}
    drawn = []
    for _ in range(draws):
        rounds = [random.randrange(count) for _ in range(count)]
        drawn.append(apart({name: [turns[n] for n in rounds if turns] for name, turns in whole.items()}))
    twentieths = quantiles(drawn, n=20)
    return twentieths[0], twentieths[-1]


def still_playing(found: dict[str, list[Turn]]) -> list[str]:
    """All but the fixed numbers that are far behind."""
    speeds = {name: speed(turns[WARM_UP:]) for name, turns in found.items()}
    best = max(speeds[name] for name in FIXED)
    return [name for name in KINDS if name not in FIXED or speeds[name] > BEHIND * best]


def one_round(
    players: dict[str, list[Player]],
    playing: list[str],
    order: Random,
    until: int,
    found: dict[str, list[Turn]],
) -> None:
    """A turn of each engine, in some order."""
    turns: dict[str, list[Turn]] = {name: [] for name in playing}
    all_of_them = [(name, player) for name in playing for player in players[name]]
    for name, player in order.sample(all_of_them, len(all_of_them)):
        turns[name].append(player.play(until))
    for name, some in turns.items():
        found[name].append((sum(tokens for tokens, _ in some), sum(took for _, took in some)))


@torch.inference_mode()
def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else "tiny-instruct"
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 300
    head = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True).stdout.strip()
    network, chat = load_network(locate(model)), Chat.from_pretrained(locate(model))
    leave_cores_to_kernels()
    for batch in map(int, sys.argv[3:] or BATCHES):
        sizes = {"max_sequences": batch, "cache_bytes": 1 << 28}
        players: dict[str, list[Player]] = {name: [] for name in KINDS}
        for name in (*KINDS, *reversed(KINDS)) * (ENGINES // 2):
            count, fixed = KINDS[name]
            config = EngineConfig(draft_tokens=count, fixed_drafts=fixed, **sizes)
            players[name].append(Player(network, config, requests(chat, WAVES * batch)))
        gc.unfreeze()  # the last batch size's engines
        gc.collect()
        gc.freeze()  # as the server does
        found: dict[str, list[Turn]] = {name: [] for name in KINDS}
        turn = max(turn_of(player, batch) for player in players["0"])
        rounds, begun, order = 0, time.perf_counter(), Random(batch)
        playing, tried = list(KINDS), False
        while rounds < WARM_UP + 4 or time.perf_counter() < begun + seconds:
            if not tried and rounds >= WARM_UP + 4 and time.perf_counter() > begun + TOLD * seconds:
                playing, tried = still_playing(found), True
            one_round(players, playing, order, PROBE + (rounds + 1) * turn, found)
            rounds += 1
        found = {name: turns[WARM_UP:] for name, turns in found.items()}
        speeds = {name: speed(turns) for name, turns in found.items()}
        best = max(FIXED, key=lambda name: speeds[name])
        line = {
            "benchmark": "speculation",
            "device": platform.processor() or platform.machine(),
            "commit": commit,
            "model": model,
            "batch": batch,
            "rounds": rounds - WARM_UP,
            **{f"tokens_per_second_{name}": round(value, 1) for name, value in speeds.items()},
            "accepted": {
                name: round(sum(p.accepted for p in some) / max(1, sum(p.drafted for p in some)), 2)
                for name, some in players.items()
            },
            "best_fixed": best,
            "adaptive_over_best": round(speeds["adaptive"] / speeds[best], 3),
            "adaptive_over_best_apart": round(apart(found), 3),
            "apart_within": [round(end, 3) for end in within(found)],
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
