"""An engine without a model: it says what a test tells it to, and notes what was asked and what was
aborted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from qnext.engine.request import Facts, Output, Request, TokenLogprob
from qnext.engine.stats import Counters, Stats
from qnext.engine.stream import Stream
from qnext.text.tokenizer import Tokenizer

Script = Callable[[Request], Sequence[Output]]


class FakeEngine:
    """`delay` is the time before each output, in seconds; `requests` and `aborted` tell what happened."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.reset()

    def reset(self) -> None:
        self.requests: list[Request] = []
        self.aborted: list[Request] = []
        self.delay = 0.0
        self.refusal: Exception | None = None
        self.say("Hello there, friend.")

    def stats(self) -> Stats:
        """As many requests as were asked have ended, by themselves."""
        counters = Counters(stopped=len(self.requests))
        return Stats(counters, 0, 0, pages=8, pages_used=0, pages_kept=0, slots=4, slots_used=0, evictions=0)

    def say(self, *texts: str, pieces: int = 1, cached: int = 0, end: bool = True) -> None:
        """Answer with a text (which may hold tags), `pieces` tokens at a time; several texts answer by
        seed."""
        first_seed: list[int] = []

        def script(request: Request) -> Sequence[Output]:
            seed = request.sampling.seed or 0
            if not first_seed or seed < first_seed[0]:
                first_seed[:] = [seed]
            text = texts[(seed - first_seed[0]) % len(texts)]
            ids = self.tokenizer.encode_trusted(text)
            return outputs(request, ids + list(request.eos[:1]) if end else ids, pieces, cached)

        self.script: Script = script

    def fail(self, text: str, message: str = "boom") -> None:
        """Say a text, then fail."""

        def script(request: Request) -> Sequence[Output]:
            said = [Output((token,)) for token in self.tokenizer.encode_trusted(text)]
            return [*said, Output(finish_reason="error", error=message)]

        self.script = script

    def submit(self, request: Request) -> Stream:
        if self.refusal is not None:
            raise self.refusal
        self.requests.append(request)
        stopped = threading.Event()

        def abort(stream: Stream) -> None:
            self.aborted.append(stream.request)
            stopped.set()

        stream = Stream(request, abort)
        script, delay = self.script(request), self.delay
        if not delay:
            for output in script:
                stream.put(output)
            return stream

        def run() -> None:
            for output in script:
                if stopped.wait(delay):
                    stream.put(Output(finish_reason="abort"))
                    return
                stream.put(output)

        threading.Thread(target=run, daemon=True).start()
        return stream

    def wait_for_abort(self, count: int = 1, seconds: float = 5.0) -> None:
        """Fails the test when the engine is not told in time."""
        until = time.monotonic() + seconds
        while len(self.aborted) < count:
            assert time.monotonic() < until, "the engine was never told to stop"
            time.sleep(0.005)


def outputs(request: Request, ids: Sequence[int], pieces: int = 1, cached: int = 0) -> list[Output]:
    """What a real engine would make of `ids`: obeys max_tokens, max_total_tokens, eos and stop ids."""
    sampling, ends = request.sampling, {*request.eos, *request.sampling.stop_token_ids}
    end_of_thought = request.reasoning.end if request.reasoning else None
    kept: list[int] = []
    reason, answer, thinking = None, 0, request.reasoning is not None
    for token in ids:
        kept.append(token)
        answer += not thinking
        thinking = thinking and token != end_of_thought
        if token in ends:
            reason = "stop"
        elif answer == sampling.max_tokens or len(kept) == sampling.max_total_tokens:
            reason = "length"
        if reason:
            break
    reports = prompt_reports(request)
    made = [
        Output(tuple(kept[i : i + pieces]), _logprobs(request, kept[i : i + pieces]), cached_tokens=cached)
        for i in range(0, len(kept), pieces)
    ]
    made[0] = made[0]._replace(prompt_logprobs=reports)
    return [
        *made[:-1],
        made[-1]._replace(finish_reason=reason or "length", facts=facts_of(request, kept, cached)),
    ]


def facts_of(request: Request, answer: Sequence[int], cached: int) -> Facts:
    """What the fake engine tells: made-up times, and the experts of two layers, two for each token."""
    experts = None
    if request.routed_experts:
        experts = np.arange(4 * (len(request.prompt) + len(answer) - 1)).reshape(-1, 2, 2) % 7
    return Facts(0.25, 0.5, 1.5, cached, len(request.prompt) + len(answer) - 1, 9, 6, 0, experts)


def prompt_reports(request: Request) -> tuple[TokenLogprob, ...]:
    """Of the prompt's token `i`: -i / 8, and as many others as are wanted, likelier and unlikelier."""
    wanted = request.sampling.prompt_logprobs
    if wanted is None:
        return ()
    return tuple(
        TokenLogprob(token, -i / 8, tuple((token + k, (1 - k - i) / 8) for k in range(wanted)))
        for i, token in enumerate(request.prompt[1:], 1)
    )


def _logprobs(request: Request, ids: Sequence[int]) -> tuple[TokenLogprob, ...]:
    asked = request.sampling.logprobs
    if asked is None:
        return ()
    others = [-0.5, -1.5, -2.5, -3.5, float("-inf")][:asked]
    return tuple(
        TokenLogprob(token, -0.5, tuple((token + k, logprob) for k, logprob in enumerate(others)))
        for token in ids
    )
