"""What the server itself costs: an engine that computes nothing behind the whole HTTP server.

    python benchmarks/serve.py [h11|httptools]

The server is a process of its own on one core, the clients are another. Prints one JSON line:
`token_microseconds`, the server's CPU time for one streamed token by dialect (one stream, tokens as fast as
they are taken; the best of three); `streams`, 64 of them at 50 tokens a second each: whether they kept their
pace, the share of a core that the server took, that time by token, and how much of it was the kernel's;
`request_milliseconds`, from before a request is sent until the engine has it, one request after another
(median and 95th percentile). Time of the engine's own thread is taken off.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import platform
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import uvicorn
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse
from starlette.routing import Route

from qnext.engine.request import Output, Request
from qnext.engine.stats import Counters, Stats
from qnext.engine.stream import Stream, deliver
from qnext.models import locate
from qnext.server.admission import Admission
from qnext.server.app import create_app
from qnext.server.keys import Keys
from qnext.server.service import Served, Service
from qnext.server.settings import Settings
from qnext.server.store import open_store
from qnext.text.chat import Chat

STREAMS, PACE, SECONDS = 64, 50, 10
TOKENS, REQUESTS = 3000, 300
HI = [{"role": "user", "content": "Tell me of the sea."}]
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "native": (
        "/api/v1/services/aigc/text-generation/generation",
        {"input": {"messages": HI}, "parameters": {"max_tokens": TOKENS, "incremental_output": True}},
    ),
    "chat": ("/v1/chat/completions", {"messages": HI, "max_tokens": TOKENS}),
    "completions": ("/v1/completions", {"prompt": "The sea", "max_tokens": TOKENS}),
    "responses": ("/v1/responses", {"input": HI, "max_output_tokens": TOKENS}),
    "messages": ("/v1/messages", {"messages": HI, "max_tokens": TOKENS}),
}


class Nothing:
    """An engine that repeats a sentence: all tokens at once, or one for each stream `pace` times a second."""

    def __init__(self, ids: list[int], pace: int = 0) -> None:
        self._ids, self._pace = ids, pace
        self._streams: list[tuple[Stream, int]] = []
        self._lock = threading.Lock()
        self.submitted: list[float] = []
        self.seconds = 0.0  # CPU time of its own thread
        if pace:
            threading.Thread(target=self._run, daemon=True).start()

    def submit(self, request: Request) -> Stream:
        self.submitted.append(time.perf_counter())
        stream = Stream(request, lambda stream: None)
        if self._pace:
            with self._lock:
                self._streams.append((stream, 0))
        else:
            for i in range(_length(request)):
                stream.put(self._output(request, i))
        return stream

    def stats(self) -> Stats:
        return Stats(
            Counters(), 0, 0, pages=1, pages_used=0, pages_kept=0, slots=1, slots_used=0, evictions=0
        )

    def _output(self, request: Request, i: int) -> Output:
        last = i + 1 == _length(request)
        return Output((self._ids[i % len(self._ids)],), finish_reason="length" if last else None)

    def _run(self) -> None:
        due = time.perf_counter()
        while True:
            due += 1 / self._pace
            time.sleep(max(due - time.perf_counter(), 0))
            with self._lock:
                turn, self._streams = (
                    self._streams,
                    [(stream, i + 1) for stream, i in self._streams if i + 1 < _length(stream.request)],
                )
            deliver([(stream, self._output(stream.request, i)) for stream, i in turn])
            self.seconds = time.thread_time()


def _length(request: Request) -> int:
    return request.sampling.max_tokens or request.sampling.max_total_tokens or TOKENS


def serve(home: Path, http: Any) -> None:
    """The server's process: prints its port and a key, then serves until it is stopped."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    settings, store = Settings(home=home, max_output_tokens=10**6), open_store(home)
    keys, chat = Keys(store), Chat.from_pretrained(locate("tiny-instruct"))
    ids = chat.tokenizer.encode("The sea is wide and blue, and a small boat goes home over it. ")
    engines = {"flood": Nothing(ids), "paced": Nothing(ids, PACE)}
    served = {name: Served(name, engine, chat, 10**7, 0) for name, engine in engines.items()}
    app = create_app(Service(served, settings), keys, Admission(store, settings), settings)

    async def measured(request: HttpRequest) -> JSONResponse:
        times = [engine.submitted[:] for engine in engines.values()]
        seconds = time.process_time() - sum(engine.seconds for engine in engines.values())
        kernel = os.times().system
        for engine in engines.values():
            engine.submitted.clear()
        return JSONResponse({"seconds": seconds, "kernel": kernel, "submitted": [*itertools.chain(*times)]})

    app.router.routes.append(Route("/measured", measured))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on", http=http))
    # named as TCP, as uvicorn's own is: else asyncio leaves Nagle's algorithm on
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1024)
        print(listener.getsockname()[1], keys.create()[1], flush=True)
        server.run(sockets=[listener])


class Client:
    """Requests over sockets of their own, read as bytes: reading costs little beside writing."""

    def __init__(self, port: int, key: str) -> None:
        self._port, self._key = port, key

    async def measured(self) -> dict[str, Any]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(b"GET /measured HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        found: dict[str, Any] = json.loads(answer[answer.index(b"{") :])
        return found

    async def stream(self, path: str, body: dict[str, Any]) -> int:
        """The number of frames that came."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(self.request(path, body | {"stream": True}, "close"))
        frames, last = 0, b""
        while piece := await reader.read(2**16):
            whole = last + piece
            frames += whole.count(b"\ndata:") - last.count(b"\ndata:")
            last = whole[-8:]
        writer.close()
        return frames

    def request(self, path: str, body: dict[str, Any], connection: str = "keep-alive") -> bytes:
        sent = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self._key}\r\n"
        head += f"X-DashScope-SSE: {'enable' if 'stream' in body else ''}\r\nConnection: {connection}\r\n"
        return f"{head}Content-Length: {len(sent)}\r\n\r\n".encode() + sent

    async def to_engine(self) -> list[float]:
        """Milliseconds from before each request of a row until the engine had it."""
        path, body = ASKED["chat"]
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        await self.measured()
        sent = []
        for _ in range(REQUESTS):
            raw = self.request(path, {**body, "model": "flood", "max_tokens": 1})
            sent.append(time.perf_counter())
            writer.write(raw)
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
            await reader.readexactly(int(length.split(b":")[1]))
        writer.close()
        had = (await self.measured())["submitted"]
        return sorted(1000 * (there - here) for here, there in zip(sent, had, strict=True))


async def measure(client: Client) -> dict[str, Any]:
    tokens = {}
    for name, (path, body) in ASKED.items():
        await client.stream(path, {**body, "model": "flood"})
        seen = []
        for _ in range(3):
            before = (await client.measured())["seconds"]
            frames = await client.stream(path, {**body, "model": "flood"})
            assert frames > TOKENS * 0.9, (name, frames)
            seen.append((await client.measured())["seconds"] - before)
        tokens[name] = round(1e6 * min(seen) / TOKENS, 1)
    path, body = ASKED["chat"]
    asked = {**body, "model": "paced", "max_tokens": PACE * SECONDS}
    before, begun = await client.measured(), time.perf_counter()
    await asyncio.gather(*(client.stream(path, asked) for _ in range(STREAMS)))
    wall = time.perf_counter() - begun
    after = await client.measured()
    spent, kernel = (after[name] - before[name] for name in ("seconds", "kernel"))
    delays = await client.to_engine()
    return {
        "token_microseconds": tokens,
        "streams": {
            "sustained": wall < 1.05 * SECONDS,
            "seconds": round(wall, 2),
            "core_share": round(spent / wall, 3),
            "token_microseconds": round(1e6 * spent / (STREAMS * PACE * SECONDS), 1),
            "of_it_in_the_kernel": round(1e6 * kernel / (STREAMS * PACE * SECONDS), 1),
        },
        "request_milliseconds": {
            "median": round(median(delays), 2),
            "p95": round(delays[len(delays) * 95 // 100], 2),
        },
    }


def main() -> None:
    http = sys.argv[1] if len(sys.argv) > 1 else "auto"
    head = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(head, capture_output=True, text=True).stdout.strip()
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, __file__, "--serve", home, http]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            port, key = process.stdout.readline().split()
            found = asyncio.run(measure(Client(int(port), key)))
        finally:
            process.terminate()
            process.wait()
    device = platform.processor() or platform.machine()
    print(json.dumps({"benchmark": "serve", "device": device, "commit": commit, "http": http, **found}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(Path(sys.argv[2]), sys.argv[3])
    else:
        main()
