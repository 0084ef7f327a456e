"""A toy network and a toy data source for the tests of training: small enough to train in a second."""

from __future__ import annotations

from typing import Any

import torch

from qnext.model.config import ModelConfig
from qnext.model.qwen3_next import Qwen3Next
from qnext.train.batch import Batch

VOCABULARY = 257  # the bytes and an end token
CYCLE = 61  # the source counts round in it
TABLE: dict[str, Any] = {
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "full_attention_interval": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "tie_word_embeddings": True,
}


def toy_model(seed: int = 0, **changes: Any) -> Qwen3Next:
    """A toy network whose weights are large enough for every part to matter."""
    torch.manual_seed(seed)
    layers = changes.pop("mtp_layers", 1)
    table = {**TABLE, "vocab_size": VOCABULARY, "initializer_range": 0.2, **changes}
    return Qwen3Next(ModelConfig.from_dict(table, mtp_layers=layers))


def toy_batch(lengths: tuple[int, ...], seed: int = 0) -> Batch:
    """Random tokens; about a third of them, and the first of each document, are not learned."""
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    weights = (torch.rand(total, generator=generator) < 0.7).float() * (
        0.5 + torch.rand(total, generator=generator)
    )
    start = 0
    for length in lengths:
        weights[start] = 0
        start += length
    return Batch(torch.randint(0, VOCABULARY, (total,), generator=generator), weights, lengths)


class ToySource:
    """Counts up from random numbers: learnable, endless, and its whole state is one count."""

    def __init__(self, seed: int = 0) -> None:
        self.seed, self.count = seed, 0

    def next(self) -> Batch:
        generator = torch.Generator().manual_seed(1000 * self.seed + self.count)
        self.count += 1
        lengths = (17, 5, 30, 1, 11)
        starts = torch.randint(0, CYCLE, (len(lengths),), generator=generator).tolist()
        ids = torch.cat([start + torch.arange(n) for start, n in zip(starts, lengths, strict=True)])
        weights = torch.cat([(torch.arange(n) > 0).float() for n in lengths])
        return Batch(ids % CYCLE, weights, lengths)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]

    def close(self) -> None:
        pass
