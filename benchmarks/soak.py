"""Many clients for a long time: streams with random aborts, the gaps between tokens, and what is left behind.

    python benchmarks/soak.py [seconds] [clients] [MODEL]

Clients stream answers to conversations, each a little different, and leave one in five early. Prints one JSON
line: requests, errors that nobody asked for, quantiles of the gap between tokens in milliseconds, resident
memory after the first fifth and at the end, and the pages and slots that are still in use.
"""

from __future__ import annotations

import asyncio
import gc
import json
import platform
import subprocess
import sys
import time
from random import Random

from qnext import LLM, SamplingParams
from qnext.engine.request import Request


def resident() -> int:
    """Bytes of memory this process holds."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


async def client(llm: LLM, number: int, until: float, seen: dict[str, list[float]]) -> None:
    random, chat = Random(number), llm.chat_format
    while time.monotonic() < until:
        topic = random.choice(("cats", "the sea", "bread", "old towns", "rain"))
        messages = [{"role": "user", "content": f"Tell me about {topic}, part {random.randrange(10**6)}."}]
        prompt = chat.encode(messages)
        wish = SamplingParams(temperature=0.8, top_p=0.9, max_tokens=random.randrange(5, 120))
        request = Request(prompt.ids, wish, chat.eos_token_ids, boundaries=prompt.boundaries)
        stream = llm.engine.submit(request)
        leaves = random.randrange(1, 60) if random.random() < 0.2 else None
        told, last = 0, None
        async for output in stream:
            now = time.monotonic()
            if output.token_ids and last is not None:
                seen["gaps"].append(now - last)
            last, told = now, told + len(output.token_ids)
            if leaves is not None and told >= leaves:
                stream.abort()
                leaves = None
                seen["left"].append(1)
            if output.finish_reason == "error":
                seen["errors"].append(1)
        seen["ended"].append(1)


async def soak(llm: LLM, seconds: float, clients: int) -> dict[str, object]:
    seen: dict[str, list[float]] = {"gaps": [], "left": [], "errors": [], "ended": []}
    begun = time.monotonic()
    tasks = [asyncio.create_task(client(llm, i, begun + seconds, seen)) for i in range(clients)]
    await asyncio.sleep(seconds / 5)
    before = resident()
    await asyncio.gather(*tasks)
    gaps = sorted(seen["gaps"])
    stats = llm.engine.stats()
    return {
        "seconds": round(time.monotonic() - begun),
        "clients": clients,
        "requests": len(seen["ended"]),
        "aborted": len(seen["left"]),
        "errors": len(seen["errors"]),
        **{f"gap_ms_p{q}": round(1000 * gaps[len(gaps) * q // 100], 1) for q in (50, 90, 99)},
        "tokens_per_second": round(stats.counters.generated_tokens / (time.monotonic() - begun), 1),
        "cached_share": round(stats.counters.cached_tokens / stats.counters.prompt_tokens, 3),
        "rss_mib_after_a_fifth": before >> 20,
        "rss_mib_at_the_end": resident() >> 20,
        "rss_growth": round(resident() / before - 1, 4),
        "pages_used": stats.pages_used,
        "slots_used": stats.slots_used,
    }


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 600
    clients = int(sys.argv[2]) if len(sys.argv) > 2 else 64
    model = sys.argv[3] if len(sys.argv) > 3 else "tiny-instruct"
    head = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True).stdout.strip()
    with LLM(model) as llm:
        found = asyncio.run(soak(llm, seconds, clients))
    device = platform.processor() or platform.machine()
    print(json.dumps({"benchmark": "soak", "device": device, "commit": commit, "model": model, **found}))


if __name__ == "__main__":
    main()
