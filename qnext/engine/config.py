"""The engine's resources, as its owner states them. Numbers found at run time never come back here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qnext.model.config import ModelConfig
from qnext.model.state import StateSize

SPARE_SLOTS = 4  # for states that are kept in the middle of a prompt
STATES_EACH = 16  # kept states for each sequence that may run; beyond that memory is left to others


@dataclass(frozen=True)
class EngineConfig:
    """How much the engine may hold and do at once.

    `cache_bytes` bounds running sequences and kept prefixes together; `prefix_cache` keeps prefixes, in what
    the running do not need, with a state at least every `checkpoint_stride` tokens. Beyond that,
    `host_cache_bytes` of host memory (for a GPU) and `disk_cache_bytes` in the folder `disk_cache` hold
    copies; the disk's survive a restart. `max_sequences` run at once, up to `max_waiting` more queue.
    `step_tokens` bounds the tokens of one forward, so that long prompts do not hold up running answers.
    `max_length` caps prompt + answer of a request (None: what the model was made for). Up to `draft_tokens`
    are guessed ahead (0: none), as many as pays, or always so many with `fixed_drafts`. With `rehearse`
    it answers made-up requests until the first real one comes, so that none is slow for being first. With
    `batch_invariant` an answer does not depend, to the last bit, on what runs beside it: each sequence is
    computed by itself, with neither prefix cache nor guesses. Raises ValueError on nonsense, naming
    the field.
    """

    cache_bytes: int = 4 << 30
    page_size: int = 16
    max_sequences: int = 32
    max_waiting: int = 4096
    step_tokens: int = 1024
    max_length: int | None = None
    draft_tokens: int = 3
    fixed_drafts: bool = False
    rehearse: bool = False
    prefix_cache: bool = True
    checkpoint_stride: int = 2048
    host_cache_bytes: int = 0
    disk_cache: Path | None = None
    disk_cache_bytes: int = 64 << 30
    batch_invariant: bool = False

    def __post_init__(self) -> None:
        for name in ("cache_bytes", "page_size", "max_sequences", "step_tokens", "checkpoint_stride"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: give 1 or more")
        for name in ("max_waiting", "host_cache_bytes", "disk_cache_bytes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}: give 0 or more")
        if not 0 <= self.draft_tokens <= 8:
            raise ValueError(f"draft_tokens is {self.draft_tokens}: give 0 (no guesses) to 8")
        if self.max_length is not None and self.max_length < 2:
            raise ValueError(f"max_length is {self.max_length}: give 2 or more")
        if (self.host_cache_bytes or self.disk_cache is not None) and not self.keeps_prefixes:
            raise ValueError("host_cache_bytes and disk_cache need the prefix cache: leave prefix_cache on")

    @property
    def drafts(self) -> int:
        """The most tokens that are guessed at once."""
        return 0 if self.batch_invariant else self.draft_tokens

    @property
    def keeps_prefixes(self) -> bool:
        return self.prefix_cache and not self.batch_invariant

    @property
    def slots(self) -> int:
        """State slots: one a running sequence, and a few to keep states on the way."""
        return self.max_sequences + (SPARE_SLOTS if self.keeps_prefixes else 0)

    def length_limit(self, model: ModelConfig) -> int:
        """Tokens, prompt and answer together, that one request may have."""
        longest = native_length(model)
        if model.rope_scaling is not None:
            longest = max(model.max_position_embeddings, int(longest * model.rope_scaling.factor))
        return min(self.max_length or longest, longest)

    def page_count(self, model: ModelConfig, itemsize: int, *, mtp: bool = False, kept: int = 0) -> int:
        """Pages that fit beside the state slots, and no more than pay: as many as `max_sequences` longest
        requests use, with a prefix cache twice that and some kept states for each."""
        size = StateSize.of(model, itemsize, self.drafts, mtp=mtp, kept=kept)
        left = self.cache_bytes - self.slots * size.slot
        useful = self.max_sequences * -(-(self.length_limit(model) + self.drafts) // self.page_size)
        page = size.kv_token * self.page_size
        if self.keeps_prefixes and page:
            useful = 2 * useful + self.max_sequences * STATES_EACH * -(-size.slot // page)
        pages = min(useful, left // max(1, page))
        if pages < 1:
            raise ValueError(
                f"cache_bytes is {self.cache_bytes}: {self.slots} sequences of state alone take "
                f"{self.cache_bytes - left}; give more, or lower max_sequences"
            )
        return pages


def native_length(model: ModelConfig) -> int:
    """Tokens that positions reach without YaRN."""
    if model.rope_scaling is None:
        return model.max_position_embeddings
    return int(model.rope_scaling.original_max_position_embeddings)
