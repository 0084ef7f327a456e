"""What an engine has done and holds, as plain numbers: for `/metrics`, benchmarks and tests.

Made by `steps`. Invariant: counters only grow; a snapshot never changes.
"""

from __future__ import annotations

from dataclasses import dataclass

from .request import Facts, FinishReason


@dataclass
class Counters:
    """Sums since the engine was made; times are in seconds."""

    steps: int = 0
    step_seconds: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    computed_tokens: int = 0
    generated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    preemptions: int = 0
    failures: int = 0
    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    stopped: int = 0
    lengths: int = 0
    aborted: int = 0

    def ended(self, facts: Facts, reason: FinishReason | None, prompt: int, generated: int) -> None:
        """Add a request that has ended."""
        self.prompt_tokens += prompt
        self.cached_tokens += facts.cached_tokens
        self.computed_tokens += facts.computed_tokens
        self.generated_tokens += generated
        self.drafted_tokens += facts.drafted_tokens
        self.accepted_tokens += facts.accepted_tokens
        self.preemptions += facts.preemptions
        self.queue_seconds += facts.queue_seconds
        self.prefill_seconds += facts.prefill_seconds
        self.decode_seconds += facts.decode_seconds
        self.stopped += reason == "stop"
        self.lengths += reason == "length"
        self.aborted += reason == "abort"
        self.failures += reason == "error"


@dataclass(frozen=True)
class Stats:
    """`pages_used` are in use by running sequences, `pages_kept` hold prefixes for later (some are both)."""

    counters: Counters
    running: int
    waiting: int
    pages: int
    pages_used: int
    pages_kept: int
    slots: int
    slots_used: int
    evictions: int
