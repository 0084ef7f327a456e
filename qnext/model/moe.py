"""The sparse feed-forward half: a router, many experts of which few are used, and one that every token
uses.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qnext.kernels.ops import Ops

from .config import ModelConfig
from .layers import Step, SwiGLU


class Experts(nn.Module):
    """Stacked SwiGLU experts: `gate_up_proj [E, 2I, H]` (gate rows first) and `down_proj [E, H, I]`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        count, width, hidden = config.num_experts, config.moe_intermediate_size, config.hidden_size
        self.gate_up_proj = nn.Parameter(torch.zeros(count, 2 * width, hidden))
        self.down_proj = nn.Parameter(torch.zeros(count, hidden, width))

    def forward(self, x_TH: Tensor, weights_Tk: Tensor, chosen_Tk: Tensor, ops: Ops) -> Tensor:
        """The chosen experts' weighted sum [T, H]; see `Ops.experts`."""
        return ops.experts(x_TH, weights_Tk, chosen_Tk, self.gate_up_proj, self.down_proj)


class SparseMoE(nn.Module):
    """Routed experts plus the gated shared expert."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.top_k, self.normalise = config.num_experts_per_tok, config.norm_topk_prob
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.experts = Experts(config)
        self.shared_expert = SwiGLU(config.hidden_size, config.shared_expert_intermediate_size)
        self.shared_expert_gate = nn.Linear(config.hidden_size, 1, bias=False)

    def forward(self, x_TH: Tensor, step: Step) -> Tensor:
        probs, weights, chosen = step.ops.route(self.gate(x_TH), self.top_k, self.normalise)
        if step.routing is not None:
            step.routing.append((probs, chosen))
        routed: Tensor = self.experts(x_TH, weights, chosen, step.ops)
        shared: Tensor = self.shared_expert(x_TH, step) * self.shared_expert_gate(x_TH).sigmoid()
        return routed + shared
