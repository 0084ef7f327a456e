"""Whether guessing ahead ever costs: tokens a second with 0 to 3 guesses, and with as many as pays.

    python benchmarks/speculation.py [MODEL] [rounds] [batch …]

Every engine answers the same prompts, four for each place in its batch and of several lengths, so that the
batch stays full and places fall free one by one; rounds are interleaved, each beginning with another engine,
so that a busy machine hits all alike, and all engines run on the same weights in memory, as where these lie
moves a small model's speed by several per cent. Prints one JSON line a batch size: medians of the rounds, and
what `adaptive` reaches of the best fixed number, round by round. The best of several noisy medians is good by
luck too: `adaptive_over_best_apart` is held against the one that the other half of the rounds finds best.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from statistics import median

from qnext import EngineConfig, SamplingParams
from qnext.engine.engine import Engine
from qnext.engine.request import Request
from qnext.model.network import load_network
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
TURNS = 4


def requests(chat: Chat, batch: int) -> list[Request]:
    found = []
    for i in range(batch * TURNS):
        prompt = chat.encode([{"role": "user", "content": f"{QUESTIONS[i % 4]} {i}"}])
        sampling = SamplingParams(temperature=0, max_tokens=LENGTHS[i % len(LENGTHS)], ignore_eos=True)
        found.append(Request(prompt.ids, sampling, chat.eos_token_ids))
    return found


def speed(engine: Engine, asked: list[Request]) -> tuple[float, float]:
    """Tokens a second of all answers, and the share of guesses that were right."""
    begun = time.perf_counter()
    streams = [engine.submit(request) for request in asked]
    ends = [list(stream)[-1].facts for stream in streams]
    seconds = time.perf_counter() - begun
    facts = [each for each in ends if each is not None]
    drafted = sum(each.drafted_tokens for each in facts)
    right = sum(each.accepted_tokens for each in facts) / max(1, drafted)
    return sum(each.sampling.max_tokens or 0 for each in asked) / seconds, right


def apart(found: dict[str, list[float]]) -> float:
    """What `adaptive` reaches of the best fixed number, chosen by other rounds than those compared."""
    ratios: list[float] = []
    for half in (0, 1):
        best = max(FIXED, key=lambda name: median(found[name][1 - half :: 2]))
        ratios += (a / b for a, b in zip(found["adaptive"][half::2], found[best][half::2], strict=True))
    return median(ratios)


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else "tiny-instruct"
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 12
    head = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True).stdout.strip()
    network, chat = load_network(locate(model)), Chat.from_pretrained(locate(model))
    for batch in map(int, sys.argv[3:] or BATCHES):
        sizes = {"max_sequences": batch, "cache_bytes": 1 << 29}
        engines = {
            name: Engine(network, EngineConfig(draft_tokens=count, fixed_drafts=fixed, **sizes))
            for name, (count, fixed) in KINDS.items()
        }
        asked = requests(chat, batch)
        seen: dict[str, list[tuple[float, float]]] = {name: [] for name in KINDS}
        for turn in range(rounds + 1):
            for name in (*KINDS, *KINDS)[turn % len(KINDS) :][: len(KINDS)]:
                seen[name].append(speed(engines[name], asked))
                time.sleep(0.05)
        found = {name: [rate for rate, _ in each[1:]] for name, each in seen.items()}  # the first warms up
        middle = {name: median(rates) for name, rates in found.items()}
        best = max(FIXED, key=lambda name: middle[name])
        line = {
            "benchmark": "speculation",
            "device": platform.processor() or platform.machine(),
            "commit": commit,
            "model": model,
            "batch": batch,
            **{f"tokens_per_second_{name}": round(value, 1) for name, value in middle.items()},
            "accepted": {name: round(median(right for _, right in each), 2) for name, each in seen.items()},
            "best_fixed": best,
            "adaptive_over_best": round(
                median(a / b for a, b in zip(found["adaptive"], found[best], strict=True)), 3
            ),
            "adaptive_over_best_apart": round(apart(found), 3),
        }
        print(json.dumps(line), flush=True)
        for engine in engines.values():
            engine.close()


if __name__ == "__main__":
    main()
