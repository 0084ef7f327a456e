"""Many clients for a long time: streams with random aborts, the gaps between tokens, and what is left behind.

    python benchmarks/soak.py [seconds] [clients] [MODEL] [engine|http]

Clients stream answers to conversations, each a little different, and leave one in five early: of the engine
in this process, or of a whole `qnext serve` over loopback. Prints one JSON line: requests, errors that nobody
asked for, quantiles of the gap between pieces of an answer in milliseconds, resident memory (of the server)
after the first fifth and at the end, and the pages and slots that are still in use.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import httpx

from qnext import LLM, SamplingParams
from qnext.engine.request import Request


@dataclass(frozen=True)
class Wish:
    """One request of a client."""

    question: str
    max_tokens: int
    temperature: float = 0.8
    top_p: float = 0.9


class InProcess:
    """An engine in this process."""

    def __init__(self, model: str) -> None:
        self._llm = LLM(model)
        self.pid = os.getpid()

    async def pieces(self, wish: Wish) -> AsyncIterator[int]:
        """Yields the tokens of each piece; raises where the answer ends in an error."""
        chat = self._llm.chat_format
        prompt = chat.encode([{"role": "user", "content": wish.question}])
        sampling = SamplingParams(wish.temperature, wish.top_p, max_tokens=wish.max_tokens)
        request = Request(prompt.ids, sampling, chat.eos_token_ids, boundaries=prompt.boundaries)
        stream = self._llm.engine.submit(request)
        try:
            async for output in stream:
                if output.finish_reason == "error":
                    raise RuntimeError(output.error)
                yield len(output.token_ids)
        finally:
            stream.abort()

    async def numbers(self) -> dict[str, float]:
        stats = self._llm.engine.stats()
        return {**asdict(stats.counters), "pages_used": stats.pages_used, "slots_used": stats.slots_used}

    def close(self) -> None:
        self._llm.close()


class OverHTTP:
    """A server in a process of its own."""

    def __init__(self, model: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._home, self._model = tempfile.TemporaryDirectory(), model
        self._process = subprocess.Popen(
            [str(Path(sys.executable).parent / "qnext"), "serve", model, "--port", str(port)],
            env=os.environ | {"QNEXT_HOME": self._home.name},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stderr is not None
        banner = ""
        while "answer.output" not in banner:
            line = self._process.stderr.readline()
            assert line, banner
            banner += line
        key = re.search(r"sk-[0-9a-f]{32}", banner)
        assert key, banner
        self.pid = self._process.pid
        self._client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}",
            headers={"Authorization": f"Bearer {key[0]}"},
            timeout=120,
            limits=httpx.Limits(max_connections=None),
        )

    async def pieces(self, wish: Wish) -> AsyncIterator[int]:
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": wish.question}],
            "stream": True,
            **{name: value for name, value in asdict(wish).items() if name != "question"},
        }
        async with self._client.stream("POST", "/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            ended = False
            async for line in response.aiter_lines():
                if '"error"' in line[:40]:
                    raise RuntimeError(line)
                ended = ended or line == "data: [DONE]"
                if line.startswith("data: {"):
                    yield 1
            if not ended:
                raise RuntimeError("the stream broke off")

    async def numbers(self) -> dict[str, float]:
        page = (await self._client.get("/metrics")).text
        found = re.findall(r'^qnext_(\w+?)(?:_total)?\{model="[^"]*"\} (\S+)$', page, re.M)
        return {name: float(value) for name, value in found}

    def close(self) -> None:
        self._process.terminate()
        self._process.communicate(timeout=60)
        self._home.cleanup()


def resident(pid: int) -> int:
    """Bytes of memory a process holds."""
    gc.collect()
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def client(
    subject: InProcess | OverHTTP, number: int, until: float, seen: dict[str, list[Any]]
) -> None:
    random = Random(number)
    while time.monotonic() < until:
        topic = random.choice(("cats", "the sea", "bread", "old towns", "rain"))
        wish = Wish(f"Tell me about {topic}, part {random.randrange(10**6)}.", random.randrange(5, 120))
        leaves = random.randrange(1, 20) if random.random() < 0.2 else None
        told, last = 0, None
        try:
            async with aclosing(subject.pieces(wish)) as pieces:  # type: ignore[type-var]
                async for count in pieces:
                    now = time.monotonic()
                    if count and last is not None:
                        seen["gaps"].append(now - last)
                    last, told = now, told + count
                    if leaves is not None and told >= leaves:
                        seen["left"].append(1)
                        break
        except Exception as error:
            seen["errors"].append(repr(error))
        seen["ended"].append(1)


async def soak(subject: InProcess | OverHTTP, seconds: float, clients: int) -> dict[str, object]:
    seen: dict[str, list[Any]] = {"gaps": [], "left": [], "errors": [], "ended": []}
    begun = time.monotonic()
    tasks = [asyncio.create_task(client(subject, i, begun + seconds, seen)) for i in range(clients)]
    await asyncio.sleep(seconds / 5)
    before = resident(subject.pid)
    await asyncio.gather(*tasks)
    lasted = time.monotonic() - begun
    await asyncio.sleep(1)  # those who were left last
    gaps, numbers = sorted(seen["gaps"]), await subject.numbers()
    after = resident(subject.pid)
    return {
        "seconds": round(lasted),
        "clients": clients,
        "requests": len(seen["ended"]),
        "aborted": len(seen["left"]),
        "errors": len(seen["errors"]),
        "first_errors": seen["errors"][:3],
        **{f"gap_ms_p{q}": round(1000 * gaps[len(gaps) * q // 100], 1) for q in (50, 90, 99)},
        "tokens_per_second": round(numbers["generated_tokens"] / lasted, 1),
        "cached_share": round(numbers["cached_tokens"] / numbers["prompt_tokens"], 3),
        "rss_mib_after_a_fifth": before >> 20,
        "rss_mib_at_the_end": after >> 20,
        "rss_growth": round(after / before - 1, 4),
        "pages_used": int(numbers["pages_used"]),
        "slots_used": int(numbers["slots_used"]),
    }


def main() -> None:
    seconds, clients, model, way = (
        *sys.argv[1:],
        *("600", "64", "tiny-instruct", "engine")[len(sys.argv) - 1 :],
    )
    head = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True).stdout.strip()
    subject = OverHTTP(model) if way == "http" else InProcess(model)
    try:
        found = asyncio.run(soak(subject, float(seconds), int(clients)))
    finally:
        subject.close()
    device = platform.processor() or platform.machine()
    line = {"benchmark": "soak", "device": device, "commit": commit, "model": model, "way": way, **found}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
