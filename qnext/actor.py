"""The actor: our engine as reinforcement asks it, on the weights of the model that is learning.

Given to the trainer by `cli`. Invariant: answers to the same questions by the same weights are the same, to
the last bit: they begin together, nothing is guessed, and nothing is kept from one answer for another.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .engine.config import EngineConfig
from .engine.engine import Engine
from .engine.request import Output, Request, SamplingParams
from .engine.stream import Stream
from .model.network import network_of
from .model.qwen3_next import Qwen3Next
from .train.recipe import Recipe
from .train.rollout import UNKNOWN, Ask, Rollout


class EngineActor:
    """An engine that is made with the first weights it is given, as `dtype`, and goes on with later ones."""

    def __init__(self, dtype: torch.dtype, max_length: int, at_once: int) -> None:
        self._dtype = dtype
        self._engine: Engine | None = None
        self._config = EngineConfig(
            max_sequences=at_once,
            max_waiting=1 << 20,
            max_length=max_length,
            draft_tokens=0,
            prefix_cache=False,
        )

    @classmethod
    def open(cls, recipe: Recipe) -> EngineActor:
        """For a recipe with [rl]: in the numbers that it learns with."""
        assert recipe.rl is not None
        specs = [recipe.data, *([recipe.heldout.data] if recipe.heldout else [])]
        return cls(getattr(torch, recipe.dtype), max(spec.max_length for spec in specs), recipe.rl.at_once)

    def refresh(self, model: Qwen3Next) -> None:
        """Take over the weights as they are now; the engine goes on running."""
        network = network_of(model, dtype=self._dtype, activations="exact")
        if self._engine is None:
            self._engine = Engine(network, self._config)
        else:
            self._engine.refresh(network)

    def answer(self, asks: Sequence[Ask]) -> list[Rollout]:
        """An answer to each. Raises RuntimeError where the engine fails."""
        assert self._engine is not None, "it has no weights yet"
        streams = self._engine.submit_together([_request(ask) for ask in asks])
        return [_rollout(ask, stream) for ask, stream in zip(asks, streams, strict=True)]

    def close(self) -> None:
        """End the engine."""
        if self._engine is not None:
            self._engine.close()


def _request(ask: Ask) -> Request:
    sampling = SamplingParams(
        temperature=ask.temperature, seed=ask.seed, max_tokens=ask.max_tokens, logprobs=0
    )
    return Request(ask.prompt, sampling, ask.eos, routed_experts=ask.routed, tempered_logprobs=True)


def _rollout(ask: Ask, stream: Stream) -> Rollout:
    whole = Output.joined(list(stream))
    if whole.error is not None:
        raise RuntimeError(f"the engine failed while it answered: {whole.error}")
    log_probs = torch.tensor([each.logprob for each in whole.logprobs])
    experts = None
    if ask.routed and whole.facts is not None and whole.facts.routed_experts is not None:
        experts = _placed(whole.facts.routed_experts, len(ask.prompt) + len(whole.token_ids))
    return Rollout(ask.prompt, whole.token_ids, log_probs, whole.finish_reason == "stop", experts)


def _placed(experts_CLk: np.ndarray, length: int) -> Tensor:
    """The experts of the tokens that were computed, which end before the last one of a text, at their places
    in it [length, L, k]."""
    count, layers, each = experts_CLk.shape
    placed = torch.full((length, layers, each), UNKNOWN)
    placed[length - 1 - count : length - 1] = torch.from_numpy(experts_CLk.astype(np.int64))
    return placed
