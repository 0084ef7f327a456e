"""The engine's resources, as its owner states them. Numbers found at run time never come back here."""

from __future__ import annotations

from dataclasses import dataclass

from qnext.model.config import ModelConfig
from qnext.model.state import StateSize


@dataclass(frozen=True)
class EngineConfig:
    """How much the engine may hold and do at once.

    `cache_bytes` bounds KV pages and state slots together. `max_sequences` run at once, up to `max_waiting`
    more queue. `step_tokens` bounds the tokens of one forward, so that long prompts do not hold up running
    answers. `max_length` caps prompt + answer of a request (None: what the model was made for).
    Raises ValueError on nonsense, naming the field.
    """

    cache_bytes: int = 4 << 30
    page_size: int = 16
    max_sequences: int = 32
    max_waiting: int = 4096
    step_tokens: int = 1024
    max_length: int | None = None

    def __post_init__(self) -> None:
        for name in ("cache_bytes", "page_size", "max_sequences", "max_waiting", "step_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give 1 or more")
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"max_length is {self.max_length}: give 2 or more")

    def length_limit(self, model: ModelConfig) -> int:
        """Tokens, prompt and answer together, that one request may have."""
        return min(self.max_length or model.max_position_embeddings, model.max_position_embeddings)

    def page_count(self, model: ModelConfig, itemsize: int) -> int:
        """KV pages that fit beside the state slots, and are of use to `max_sequences` longest requests."""
        size = StateSize.of(model, itemsize)
        left = self.cache_bytes - self.max_sequences * (size.delta + size.conv)
        useful = self.max_sequences * -(-self.length_limit(model) // self.page_size)
        pages = min(left // max(1, size.kv_token * self.page_size), useful)
        if pages < 1:
            raise ValueError(
                f"cache_bytes is {self.cache_bytes}: {self.max_sequences} sequences of state alone take "
                f"{self.cache_bytes - left}; give more, or lower max_sequences"
            )
        return pages
