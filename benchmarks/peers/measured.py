"""The same stopwatch for engines that are driven from Python: prefill, decode and batches of one load.

Used inside the children of `vllm_cpu` and `transformers_cpu`. Invariant: decoding is timed as the difference
of two generations that differ in their length only, so that prefill and start-up cancel out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from random import Random
from statistics import median
from typing import Any

from .load import Load
from .quiet import quiet

# Generates `tokens` tokens after each prompt, greedily, and stops nowhere else.
Generate = Callable[[list[list[int]], int], object]


def figures(generate: Generate, vocabulary: int, load: Load) -> dict[str, Any]:
    random = Random(0)

    def prompts(count: int, length: int) -> list[list[int]]:
        return [[random.randrange(vocabulary) for _ in range(length)] for _ in range(count)]

    def seconds(count: int, length: int, tokens: int) -> float:
        texts = prompts(count, length)  # new ones each time: nothing to find in a cache
        begun = time.perf_counter()
        generate(texts, tokens)
        return time.perf_counter() - begun

    def decode(count: int, length: int) -> float:
        seconds(count, length, 2)
        found = [
            seconds(count, length, 1 + load.tokens) - seconds(count, length, 1) for _ in range(load.repeats)
        ]
        return round(count * load.tokens / median(found), 2)

    def prefill(length: int) -> float:
        seconds(1, length, 1)
        return round(length / median(seconds(1, length, 1) for _ in range(load.repeats)), 1)

    found: dict[str, Any] = {"prefill": {}, "decode": {}, "batch": {}}
    for length in load.prompts:
        with quiet():
            found["prefill"][str(length)] = prefill(length)
    for context in load.contexts:
        with quiet():
            found["decode"][str(context)] = decode(1, context)
    for batch in load.batches:
        with quiet():
            found["batch"][str(batch)] = decode(batch, load.contexts[0])
    return found
