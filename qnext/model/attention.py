"""Gated attention: grouped queries, normalised q and k, partial rotary positions, a sigmoid gate on the
output.
"""

from __future__ import annotations

from torch import Tensor, nn

from .config import ModelConfig
from .layers import RMSNorm, Step


class GatedAttention(nn.Module):
    """Every fourth layer's mixer. Each head's output is scaled by its own gate before the output
    projection.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, width, bias = config.hidden_size, config.head_dim, config.attention_bias
        queries, keys = config.num_attention_heads * width, config.num_key_value_heads * width
        self.head_dim = width
        self.q_proj = nn.Linear(hidden, queries, bias=bias)
        self.gate_proj = nn.Linear(hidden, queries, bias=bias)
        self.k_proj = nn.Linear(hidden, keys, bias=bias)
        self.v_proj = nn.Linear(hidden, keys, bias=bias)
        self.o_proj = nn.Linear(queries, hidden, bias=bias)
        self.q_norm = RMSNorm(width, config.rms_norm_eps)
        self.k_norm = RMSNorm(width, config.rms_norm_eps)

    def forward(self, x_TH: Tensor, step: Step, cache: tuple[Tensor, Tensor] | None) -> Tensor:
        ops, heads = step.ops, (x_TH.shape[0], -1, self.head_dim)
        q = ops.rotate(self.q_norm(self.q_proj(x_TH).view(heads), ops), *step.rotary)
        k, v = self._keys_and_values(x_TH, step)
        out = ops.attention(q, k, v, step.packing, cache, self.head_dim**-0.5)
        gated: Tensor = self.o_proj(out.flatten(1) * self.gate_proj(x_TH).sigmoid())
        return gated

    def read(self, x_TH: Tensor, step: Step, cache: tuple[Tensor, Tensor]) -> None:
        """Put keys and values into the cache, for tokens whose answers nobody needs."""
        step.ops.store(*self._keys_and_values(x_TH, step), step.packing, cache)

    def _keys_and_values(self, x_TH: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        heads = (x_TH.shape[0], -1, self.head_dim)
        k = step.ops.rotate(self.k_norm(self.k_proj(x_TH).view(heads), step.ops), *step.rotary)
        return k, self.v_proj(x_TH).view(heads)
