"""A decoder layer: a mixer over tokens and a feed-forward half, each behind a norm and added to the
stream.
"""

from __future__ import annotations

from torch import Tensor, nn

from qnext.kernels.ops import DeltaCache

from .attention import GatedAttention
from .config import LayerType, ModelConfig
from .deltanet import GatedDeltaNet
from .layers import RMSNorm, Step, SwiGLU
from .moe import SparseMoE


class DecoderLayer(nn.Module):
    """`linear_attn` or `self_attn`, by the layer's type, then `mlp`, sparse or dense."""

    def __init__(self, config: ModelConfig, kind: LayerType, *, sparse: bool) -> None:
        super().__init__()
        self.kind = kind
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        if kind == "linear_attention":
            self.linear_attn = GatedDeltaNet(config)
        else:
            self.self_attn = GatedAttention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SparseMoE(config) if sparse else SwiGLU(config.hidden_size, config.intermediate_size)

    def forward(
        self,
        x_TH: Tensor,
        step: Step,
        kv: tuple[Tensor, Tensor] | None,
        conv: Tensor | None,
        delta: DeltaCache | None,
    ) -> Tensor:
        normed = self.input_layernorm(x_TH, step.ops)
        if self.kind == "linear_attention":
            x_TH = x_TH + self.linear_attn(normed, step, conv, delta)
        else:
            x_TH = x_TH + self.self_attn(normed, step, kv)
        out: Tensor = x_TH + self.mlp(self.post_attention_layernorm(x_TH, step.ops), step)
        return out
