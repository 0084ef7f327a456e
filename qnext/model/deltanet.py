"""Gated DeltaNet: linear attention whose state is corrected, not only added to, by every token."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qnext.kernels.ops import DeltaCache

from .config import ModelConfig
from .layers import Step


class GatedNorm(nn.Module):
    """Holds the plain (not zero-centred) weight of the norm on the delta rule's output."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))


class GatedDeltaNet(nn.Module):
    """Three of four layers' mixer. `qkvz_proj` rows: all q, all k, all v, all z; `ba_proj` rows: all b,
    all a.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, values = config.hidden_size, config.linear_value_dim
        self.widths = (config.linear_key_dim, config.linear_key_dim, values)
        self.key_head, self.value_head = config.linear_key_head_dim, config.linear_value_head_dim
        self.eps = config.rms_norm_eps
        self.qkvz_proj = nn.Linear(hidden, config.conv_dim + values, bias=False)
        self.ba_proj = nn.Linear(hidden, 2 * config.linear_num_value_heads, bias=False)
        self.conv1d = nn.Linear(config.linear_conv_kernel_dim, config.conv_dim, bias=False)
        self.A_log = nn.Parameter(torch.zeros(config.linear_num_value_heads))
        self.dt_bias = nn.Parameter(torch.ones(config.linear_num_value_heads))
        self.norm = GatedNorm(self.value_head)
        self.out_proj = nn.Linear(values, hidden, bias=False)

    def forward(self, x_TH: Tensor, step: Step, conv: Tensor | None, delta: DeltaCache | None) -> Tensor:
        ops, tokens = step.ops, x_TH.shape[0]
        qkv, z = self.qkvz_proj(x_TH).split((sum(self.widths), self.widths[2]), -1)
        b, a = self.ba_proj(x_TH).float().chunk(2, -1)
        q, k, v = ops.causal_conv(qkv, self.conv1d.weight, step.packing, conv).split(self.widths, -1)
        decay = -self.A_log.float().exp() * F.softplus(a + self.dt_bias.float())
        keys, values = (tokens, -1, self.key_head), (tokens, -1, self.value_head)
        out = ops.gated_delta_rule(
            q.view(keys), k.view(keys), v.view(values), decay, b.sigmoid(), step.packing, delta
        )
        mixed: Tensor = self.out_proj(
            ops.gated_rms_norm(out, z.view(values), self.norm.weight, self.eps).flatten(1)
        )
        return mixed
