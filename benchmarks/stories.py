"""What guessing ahead is worth where it is easiest: stories, one at a time, against plain decoding.

    python benchmarks/stories.py [MODEL] [stories]

Both engines tell the same stories in turn (the same seeds give the same tokens, which is checked), so that a
busy machine hits both alike. Prints one JSON line a temperature: tokens a second of both, median and
quartiles over stories of their ratio, the same of processor time (which other work disturbs less), and by
depth how often a guess was judged, and right where those before it were.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from random import Random
from statistics import quantiles

from qnext import LLM, EngineConfig, SamplingParams
from qnext.engine.pace import Pace
from qnext.synthetic.dialogue import Setting
from qnext.synthetic.story import made
from qnext.text.messages import Message

DEPTH = 3
MAX_TOKENS = 300
WARM_UP = 4  # stories
Judgement = tuple[int, int]  # guesses made in a row, and how many of them were right


def by_depth(judged: Iterable[Judgement], most: int) -> list[dict[str, float]]:
    """For each depth, 1 to `most`: guesses judged there (where those before were right), and their hits."""
    seen = list(judged)
    found = []
    for depth in range(most):
        reached = [right for made, right in seen if made > depth and right >= depth]
        hits = sum(right > depth for right in reached)
        found.append({"judged": len(reached), "right": round(hits / max(1, len(reached)), 3)})
    return found


@contextmanager
def watched() -> Iterator[list[Judgement]]:
    """What engines tell their pace of their guesses, as they do."""
    judged: list[Judgement] = []
    original = Pace.judged

    def keep(self: Pace, proposed: int, accepted: int) -> None:
        judged.append((proposed, accepted))
        original(self, proposed, accepted)

    Pace.judged = keep  # type: ignore[method-assign]
    try:
        yield judged
    finally:
        Pace.judged = original  # type: ignore[method-assign]


def tell(
    llm: LLM, messages: tuple[Message, ...], temperature: float, seed: int
) -> tuple[float, float, tuple[int, ...]]:
    """Seconds of one story by the clock and of the processor, and its tokens."""
    wishes = {**llm.recommended, "temperature": temperature}
    begun, busy = time.perf_counter(), time.process_time()
    answer = llm.chat(messages, SamplingParams(**wishes, seed=seed, max_total_tokens=MAX_TOKENS))
    return time.perf_counter() - begun, time.process_time() - busy, answer.token_ids


def measure(
    plain: LLM, guessing: LLM, judged: list[Judgement], temperature: float, stories: int
) -> dict[str, object]:
    """So many stories by both; a few before them warm up."""
    clock: list[tuple[float, float]] = []
    busy: list[tuple[float, float]] = []
    tokens = 0
    setting = Setting(heldout=True, thinking=plain.chat_format.is_thinking)
    for seed in range(-WARM_UP, stories):
        if seed == 0:
            judged.clear()
        messages = made(Random(seed), setting).messages[:-1]
        plain_took, plain_busy, wanted = tell(plain, messages, temperature, abs(seed))
        took, was_busy, found = tell(guessing, messages, temperature, abs(seed))
        assert wanted == found, f"guessing changed story {seed}"
        if seed >= 0:
            clock.append((plain_took, took))
            busy.append((plain_busy, was_busy))
            tokens += len(found)
    return {
        "temperature": temperature,
        "stories": stories,
        "tokens": tokens,
        "tokens_per_second_plain": round(tokens / sum(a for a, _ in clock), 1),
        "tokens_per_second_adaptive": round(tokens / sum(b for _, b in clock), 1),
        "adaptive_over_plain": quartiles(clock),
        "adaptive_over_plain_cpu": quartiles(busy),
        "depth": by_depth(judged, DEPTH),
    }


def quartiles(pairs: list[tuple[float, float]]) -> dict[str, float]:
    """Of how many times as long the first of each pair took."""
    low, middle, high = quantiles([a / b for a, b in pairs], n=4, method="inclusive")
    return {"median": round(middle, 3), "lower": round(low, 3), "upper": round(high, 3)}


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else "tiny-instruct"
    stories = int(sys.argv[2]) if len(sys.argv) > 2 else 40
    head = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True).stdout.strip()
    caches = {"max_sequences": 1, "cache_bytes": 1 << 28}
    with (
        LLM(model, engine=EngineConfig(draft_tokens=0, **caches)) as plain,
        LLM(model, engine=EngineConfig(draft_tokens=DEPTH, **caches)) as guessing,
        watched() as judged,
    ):
        for temperature in (0.0, 0.7):
            line = {
                "benchmark": "stories",
                "device": platform.processor() or platform.machine(),
                "commit": commit,
                "model": model,
                **measure(plain, guessing, judged, temperature, stories),
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
