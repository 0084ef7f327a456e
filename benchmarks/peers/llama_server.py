"""llama.cpp's server as a peer of our engine: token ids in, token ids out, and how much it computed.

Used by `conversations.py`. Invariant: the server is ended with the `with` block that started it.
"""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

# Where messages begin: their chat endpoint hands these on too, and it keeps states there.
DELIMITERS = [
    {"role": "user", "delimiter": "<|im_start|>user\n"},
    {"role": "assistant", "delimiter": "<|im_start|>assistant\n"},
]
START_SECONDS = 180
ANSWER_SECONDS = 120


@dataclass(frozen=True)
class Completion:
    """What one request gave: `ended` by the model; `prefilled` of the prompt's tokens were computed."""

    tokens: tuple[int, ...]
    ended: bool
    prefilled: int


class LlamaServer:
    """A running server on a free local port. `options` are its own command-line options."""

    def __init__(self, program: str | Path, gguf: str | Path, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._url = f"http://127.0.0.1:{port}"
        # one thread: what counts is counted, not timed, and two that spin wait long on busy cores
        words = [
            str(program),
            "-m",
            str(gguf),
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "-t",
            "1",
            *options,
        ]
        self._child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def __enter__(self) -> LlamaServer:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and self._child.poll() is None:
            try:
                with urllib.request.urlopen(f"{self._url}/health", timeout=1):
                    return self
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.1)
        self.__exit__(None, None, None)
        raise RuntimeError("llama-server does not start")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.terminate()
        try:
            self._child.wait(10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def complete(self, prompt: tuple[int, ...], tokens: int) -> Completion:
        """Continue a prompt greedily, as a client does that has no wish about slots or caches."""
        body = {
            "prompt": list(prompt),
            "n_predict": tokens,
            "temperature": 0,
            "return_tokens": True,
            "message_delimiters": DELIMITERS,
        }
        answer = self._post("/completion", body)
        return Completion(
            tuple(answer["tokens"]), answer["stop_type"] == "eos", int(answer["timings"]["prompt_n"])
        )

    def likeliest(self, prompt: list[int], count: int) -> dict[int, float]:
        """The `count` tokens that most likely follow, with their log-probabilities."""
        body = {"prompt": prompt, "n_predict": 1, "temperature": 0, "n_probs": count, "cache_prompt": False}
        first = self._post("/completion", body)["completion_probabilities"][0]
        return {each["id"]: each["logprob"] for each in first["top_logprobs"]}

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._url + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            found: dict[str, Any] = json.load(answer)
        return found
