"""The engine: takes requests from any thread, runs one model in a thread of its own, gives each a stream of
ids.

Used by `llm` and `server/service`. Invariant: whatever ends a request (its end, an abort, a missed deadline,
an error) gives back its pages and its slot, and its reader gets exactly one finishing output.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import deque
from collections.abc import Sequence as Many
from concurrent.futures import Future
from hashlib import blake2b
from itertools import count
from pathlib import Path
from threading import Condition, Thread
from types import TracebackType

import torch

from qnext.kernels.cpu.team import leave_cores_to_kernels
from qnext.model.network import KVCache, Network, load_network
from qnext.model.packed_network import Activations

from .config import EngineConfig, native_length
from .rehearsal import rehearse
from .request import Output, Request
from .sequence import Sequence
from .stats import Stats
from .steps import Steps
from .stream import Stream, deliver

log = logging.getLogger(__name__)


class EngineFull(RuntimeError):
    """The queue is full: try again later."""


class EngineClosed(RuntimeError):
    """The engine takes no more requests."""


class Engine:
    """Continuous batching over one model. `close` it, or use it in a `with` block."""

    def __init__(self, model: Network, config: EngineConfig | None = None, *, checkpoint: str = "") -> None:
        """`checkpoint` is the `fingerprint` of the weights: what lies in a disk cache must fit them."""
        self.config = config or EngineConfig()
        self.model_config = model.config
        self._steps = Steps(model, self.config, checkpoint)
        self._scheduler = self._steps.scheduler
        self.pages, self.slots = self._steps.pages, self._steps.slots
        room = self.pages.size * self.config.page_size - self._scheduler.lookahead
        self.max_length = min(self.config.length_limit(model.config), room)
        self._arrivals = count()
        self._news = Condition()
        self._arrived: deque[Sequence] = deque()
        self._aborted: deque[Stream] = deque()
        self._refreshes: deque[tuple[Network, Future[None]]] = deque()
        self._live: dict[Stream, Sequence] = {}
        self._closing = False
        self._thread = Thread(target=self._loop, name="qnext-engine", daemon=True)
        self._thread.start()

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        config: EngineConfig | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        quantize: str | None = None,
        activations: Activations = "int8",
        kv_cache: KVCache = "auto",
    ) -> Engine:
        """An engine for a checkpoint directory: see `load_network`. Raises ValueError if it is not a whole,
        legal checkpoint."""
        model = load_network(
            path, dtype=dtype, device=device, quantize=quantize, activations=activations, kv_cache=kv_cache
        )
        own = fingerprint(Path(path), dtype, quantize, activations, kv_cache)
        return cls(model, config, checkpoint=own)

    def submit(self, request: Request) -> Stream:
        """Queue a request. Raises ValueError if it can never run, EngineFull if the queue is full."""
        self._check(request)
        seed, native = request.sampling.seed, native_length(self.model_config)
        stretched = self._is_long(request, native)
        limit = self.max_length if stretched else min(self.max_length, native)
        stream = Stream(request, self._abort)
        sequence = Sequence(
            stream,
            secrets.randbits(63) if seed is None else seed,
            limit,
            arrival=next(self._arrivals),
            stretched=stretched,
        )
        with self._news:
            if self._closing:
                raise EngineClosed("the engine is closed")
            if len(self._live) >= self.config.max_waiting + self.config.max_sequences:
                raise EngineFull(f"{len(self._live)} requests are running or waiting: try again later")
            self._live[stream] = sequence
            self._arrived.append(sequence)
            self._news.notify()
        return stream

    def submit_together(self, requests: Many[Request]) -> list[Stream]:
        """Queue requests that begin in the same step, whatever else this process does: with neither guesses
        nor others beside them their answers are the same, to the last bit, each time. All or none are
        taken."""
        streams: list[Stream] = []
        with self._news:
            try:
                for request in requests:
                    streams.append(self.submit(request))
            except (ValueError, EngineFull):
                for stream in streams:
                    stream.abort()
                raise
        return streams

    def refresh(self, model: Network) -> None:
        """Go on with other weights, from the next step on; returns when they are in place. What was kept of
        texts is dropped; running requests keep what they have said, and what was computed for it is computed
        anew. Raises ValueError for a network of another shape, or where states are kept on disk or in host
        memory, which would outlive the weights."""
        now = self._steps.runner.model
        if (model.config, model.dtype, model.cache_dtype) != (now.config, now.dtype, now.cache_dtype):
            raise ValueError("the new weights are of another shape or kind: make a new engine for them")
        if self._steps.tier is not None:
            raise ValueError("host_cache_bytes and disk_cache keep states of the old weights: leave them out")
        done: Future[None] = Future()
        with self._news:
            if self._closing:
                raise EngineClosed("the engine is closed")
            self._refreshes.append((model, done))
            self._news.notify()
        done.result()

    def stats(self) -> Stats:
        """Counters and gauges up to now; may be read from any thread."""
        return self._steps.stats()

    def close(self) -> None:
        """Abort what is left and end the thread."""
        with self._news:
            self._closing = True
            self._news.notify()
        self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check(self, request: Request) -> None:
        """Raises ValueError for what can never run."""
        prompt, vocabulary = request.prompt, self.model_config.vocab_size
        if not prompt:
            raise ValueError("the prompt is empty: give at least one token")
        if len(prompt) >= self.max_length:
            raise ValueError(
                f"the prompt has {len(prompt)} tokens: at most {self.max_length - 1} leave room for an answer"
            )
        if not all(type(token) is int and 0 <= token < vocabulary for token in prompt):
            raise ValueError(f"the prompt holds a token id outside 0 to {vocabulary - 1}")
        if request.deadline is not None and not request.deadline > 0:
            raise ValueError(f"deadline is {request.deadline}: give seconds, more than 0")

    def _is_long(self, request: Request, native: int) -> bool:
        """Whether prompt and what was asked for reach beyond the model's native length."""
        if self.model_config.rope_scaling is None:
            return False
        asked = request.sampling.max_total_tokens or request.sampling.max_tokens or 1
        return len(request.prompt) + asked > native

    def _abort(self, stream: Stream) -> None:
        with self._news:
            self._aborted.append(stream)
            self._news.notify()

    @torch.inference_mode()  # once: to enter it costs as much as some operation
    def _loop(self) -> None:
        if self._steps.runner.model.own_threads:
            leave_cores_to_kernels()
        try:
            if self.config.rehearse:
                rehearse(self._steps, alone=lambda: not (self._live or self._refreshes or self._closing))
            while self._take_news():
                self._hand_out(self._steps.step())
        finally:  # even if this thread dies of a defect, no reader is left waiting
            with self._news:
                self._closing = True
                for _, done in self._refreshes:
                    done.set_exception(EngineClosed("the engine is closed"))
            self._hand_out([self._steps.end(each, "abort") for each in list(self._live.values())])
            self._steps.close()

    def _take_news(self) -> bool:
        """Wait until there is something to do; let requests in and aborted ones out. False: close."""
        with self._news:
            while not (self._live or self._aborted or self._refreshes or self._closing):
                self._news.wait()
            aborted, self._aborted = self._aborted, deque()
            for sequence in self._arrived:
                self._scheduler.add(sequence)
            self._arrived.clear()
            closing = self._closing
            while self._refreshes:
                self._exchange(self._refreshes[0][0])
                self._refreshes.popleft()[1].set_result(None)
        ended = [
            self._steps.end(self._live[each], "abort")
            for each in dict.fromkeys(aborted)
            if each in self._live
        ]
        self._hand_out([*ended, *self._late()])
        return not closing

    def _exchange(self, model: Network) -> None:
        """Put other weights in the place of these, and let go of all that was computed with them."""
        for sequence in list(self._scheduler.running):
            self._scheduler.start_over(sequence)
        if self._steps.cache is not None:
            self._steps.cache.clear()
        self._steps.runner.model = model

    def _late(self) -> list[tuple[Stream, Output]]:
        """End what has missed its deadline."""
        limited = [each for each in self._live.values() if each.request.deadline is not None]
        now = time.monotonic() if limited else 0.0
        return [
            self._steps.end(each, "error", f"not answered within {each.request.deadline} s", timed_out=True)
            for each in limited
            if now - each.times[0] > (each.request.deadline or 0.0)
        ]

    def _hand_out(self, outputs: list[tuple[Stream, Output]]) -> None:
        """Tell the readers; who has ended is forgotten first."""
        ended = [stream for stream, output in outputs if output.finish_reason is not None]
        if ended:
            with self._news:
                for stream in ended:
                    self._live.pop(stream, None)
        deliver(outputs)


def fingerprint(path: Path, *how: object) -> str:
    """Tells this checkpoint's files, and how they are run, from others, without reading the weights."""
    names = sorted(each for each in path.iterdir() if each.suffix in (".json", ".safetensors"))
    facts = [(each.name, each.stat().st_size, each.stat().st_mtime_ns) for each in names]
    return blake2b(repr((facts, how)).encode(), digest_size=16).hexdigest()
