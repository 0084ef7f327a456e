"""The multi-token-prediction head: one more attention layer that looks one token further ahead.

Used by the trainer's second loss and by drafting. It shares the embedding and the output matrix of the trunk.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .config import ModelConfig
from .decoder import DecoderLayer
from .layers import RMSNorm, Step


class MTPHead(nn.Module):
    """From the trunk's hidden state at i and the token at i + 1, a hidden state that predicts token i + 2."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.fc = nn.Linear(2 * hidden, hidden, bias=False)
        self.pre_fc_norm_embedding = RMSNorm(hidden, eps)
        self.pre_fc_norm_hidden = RMSNorm(hidden, eps)
        self.layers = nn.ModuleList([DecoderLayer(config, "full_attention", sparse=config.num_experts > 0)])
        self.norm = RMSNorm(hidden, eps)

    def forward(
        self, hidden_TH: Tensor, embedded_TH: Tensor, step: Step, cache: tuple[Tensor, Tensor] | None
    ) -> Tensor:
        """`hidden` after the trunk's final norm, `embedded` of each next token -> [T, H], normed."""
        x = self.layers[0](self._join(hidden_TH, embedded_TH, step), step, cache, None, None)
        normed: Tensor = self.norm(x, step.ops)
        return normed

    def read(self, hidden_TH: Tensor, embedded_TH: Tensor, step: Step, cache: tuple[Tensor, Tensor]) -> None:
        """Put what `forward` would into the cache. Of one layer, later tokens see keys and values alone:
        attention and experts are left out."""
        layer, x = self.layers[0], self._join(hidden_TH, embedded_TH, step)
        assert isinstance(layer, DecoderLayer)
        layer.self_attn.read(layer.input_layernorm(x, step.ops), step, cache)

    def _join(self, hidden_TH: Tensor, embedded_TH: Tensor, step: Step) -> Tensor:
        pair = (
            self.pre_fc_norm_embedding(embedded_TH, step.ops),
            self.pre_fc_norm_hidden(hidden_TH, step.ops),
        )
        joined: Tensor = self.fc(torch.cat(pair, -1))
        return joined


def ungained(hidden_TH: Tensor, norm_H: Tensor) -> Tensor:
    """What a zero-centred norm gave, without its gains: a head that norms what it gets cannot tell it from
    what went into that norm."""
    gain = 1 + norm_H
    return (hidden_TH / gain).where(gain != 0, 0.0)
