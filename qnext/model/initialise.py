"""Fresh weights, as the reference implementation draws them."""

from __future__ import annotations

import torch
from torch import nn

from .config import ModelConfig


def initialise(model: nn.Module, config: ModelConfig) -> None:
    """Matrices N(0, initializer_range); norms at identity; decay rates log U(1e-3, 16), as the delta rule
    wants.
    """
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("A_log"):
                weight.uniform_(1e-3, 16).log_()
            elif name.endswith(("dt_bias", "linear_attn.norm.weight")):
                weight.fill_(1.0)
            elif name.endswith(
                ("norm.weight", "pre_fc_norm_embedding.weight", "pre_fc_norm_hidden.weight", "bias")
            ):
                weight.zero_()
            else:
                weight.normal_(0.0, config.initializer_range)
