"""Cosines and sines of the rotary positions, made once per forward and shared by all attention layers."""

from __future__ import annotations

import torch
from torch import Tensor

from .config import ModelConfig


def frequencies(config: ModelConfig) -> Tensor:
    """Radians per position [R] fp32, stretched by YaRN where the config says so."""
    dim = int(config.head_dim * config.partial_rotary_factor)
    plain = 1.0 / config.rope_theta ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    yarn = config.rope_scaling
    if yarn is None:
        return plain
    low, high = yarn.ramp_bounds(dim, config.rope_theta)
    stretched = ((torch.arange(len(plain), dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    return plain / yarn.factor * stretched + plain * (1 - stretched)


def rotary_table(config: ModelConfig, positions_T: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine [T, R] fp32 of each position."""
    # On the CPU whatever the default device: a model built on "meta" must not make a table without data.
    angles = positions_T.float()[:, None] * frequencies(config).to(positions_T.device)
    scale = config.rope_scaling.scale if config.rope_scaling else 1.0
    return angles.cos() * scale, angles.sin() * scale
