"""The engine: takes requests from any thread, runs one model in a thread of its own, gives each a stream of
ids.

Used by `llm` and `server/service`. Invariant: whatever ends a request (its end, an abort, an error) gives
back its pages and its slot, and its reader gets exactly one finishing output.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from pathlib import Path
from threading import Condition, Thread
from types import TracebackType

import torch

from qnext.model.qwen3_next import Qwen3Next

from .config import EngineConfig
from .pool import Pool
from .request import Output, Request
from .runner import Runner
from .sampler import logprobs, sample
from .scheduler import Piece, Scheduler
from .sequence import Sequence
from .stream import Stream

log = logging.getLogger(__name__)


class EngineFull(RuntimeError):
    """The queue is full: try again later."""


class EngineClosed(RuntimeError):
    """The engine takes no more requests."""


class Engine:
    """Continuous batching over one model. `close` it, or use it in a `with` block."""

    def __init__(self, model: Qwen3Next, config: EngineConfig | None = None) -> None:
        self.config = config or EngineConfig()
        self.model_config = model.config
        pages = self.config.page_count(model.config, model.embed_tokens.weight.element_size())
        self.pages, self.slots = Pool(pages), Pool(self.config.max_sequences)
        self.max_length = min(self.config.length_limit(model.config), pages * self.config.page_size)
        self._runner = Runner(model, pages, self.config.page_size, self.slots.size)
        self._scheduler = Scheduler(self.pages, self.slots, self.config.page_size, self.config.step_tokens)
        self._news = Condition()
        self._arrived: deque[Sequence] = deque()
        self._aborted: deque[Stream] = deque()
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
    ) -> Engine:
        """An engine for a checkpoint directory. Raises ValueError if it is not a whole, legal checkpoint."""
        return cls(Qwen3Next.from_pretrained(path, dtype=dtype, device=device), config)

    def submit(self, request: Request) -> Stream:
        """Queue a request. Raises ValueError if it can never run, EngineFull if the queue is full."""
        prompt, vocabulary = request.prompt, self.model_config.vocab_size
        if not prompt:
            raise ValueError("the prompt is empty: give at least one token")
        if len(prompt) >= self.max_length:
            raise ValueError(
                f"the prompt has {len(prompt)} tokens: at most {self.max_length - 1} leave room for an answer"
            )
        if not all(type(token) is int and 0 <= token < vocabulary for token in prompt):
            raise ValueError(f"the prompt holds a token id outside 0 to {vocabulary - 1}")
        seed = request.sampling.seed
        stream = Stream(request, self._abort)
        sequence = Sequence(stream, secrets.randbits(63) if seed is None else seed, self.max_length)
        with self._news:
            if self._closing:
                raise EngineClosed("the engine is closed")
            if len(self._live) >= self.config.max_waiting + self.config.max_sequences:
                raise EngineFull(f"{len(self._live)} requests are running or waiting: try again later")
            self._live[stream] = sequence
            self._arrived.append(sequence)
            self._news.notify()
        return stream

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

    def _abort(self, stream: Stream) -> None:
        with self._news:
            self._aborted.append(stream)
            self._news.notify()

    def _loop(self) -> None:
        try:
            while self._take_news():
                self._step_or_fail(self._scheduler.plan())
        finally:  # even if this thread dies of a defect, no reader is left waiting
            with self._news:
                self._closing = True
            for sequence in list(self._live.values()):
                self._finish(sequence, Output(finish_reason="abort"))

    def _step_or_fail(self, pieces: list[Piece]) -> None:
        """One step; the model's failure ends the requests in it, not the engine."""
        try:
            self._step(pieces)
        except Exception as error:
            log.exception("a step of %d requests failed", len(pieces))
            for piece in pieces:
                if piece.sequence.stream in self._live:
                    message = f"{type(error).__name__}: {error}"
                    self._finish(piece.sequence, Output(finish_reason="error", error=message))

    def _take_news(self) -> bool:
        """Wait until there is something to do; let requests in and aborted ones out. False: close."""
        with self._news:
            while not (self._live or self._aborted or self._closing):
                self._news.wait()
            aborted, self._aborted = self._aborted, deque()
            self._scheduler.waiting.extend(self._arrived)
            self._arrived.clear()
            closing = self._closing
        for stream in aborted:
            if stream in self._live:
                self._finish(self._live[stream], Output(finish_reason="abort"))
        return not closing

    def _step(self, pieces: list[Piece]) -> None:
        if not pieces:
            return
        logits = self._runner.run(pieces)
        complete = []
        for piece in pieces:
            piece.sequence.computed += piece.length
            if piece.sequence.pending == 0:
                complete.append(piece.sequence)
        # +inf and NaN poison a softmax; -inf merely forbids a token.
        sound = (logits < float("inf")).all(-1) & (logits > float("-inf")).any(-1)
        for row, fine in enumerate(sound.tolist()):
            if not fine:
                message = "the model gave scores that are not finite"
                self._finish(complete[row], Output(finish_reason="error", error=message))
        rows = sound.nonzero()[:, 0]
        if len(rows) == 0:
            return
        sequences, logits = [complete[row] for row in rows.tolist()], logits[rows]
        tokens = sample(logits, sequences)
        reports = logprobs(logits, tokens, sequences)
        for sequence, token, report in zip(sequences, tokens, reports, strict=True):
            output = sequence.extend(token, report)
            if output.finish_reason is None:
                sequence.stream.put(output)
            else:
                self._finish(sequence, output)

    def _finish(self, sequence: Sequence, output: Output) -> None:
        """Free what the sequence holds, then tell its reader."""
        self._scheduler.release(sequence)
        with self._news:
            self._live.pop(sequence.stream, None)
        sequence.stream.put(output)
