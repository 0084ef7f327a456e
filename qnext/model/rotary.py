"""Cosines and sines of the rotary positions, made once per forward and shared by all attention layers."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from .config import ModelConfig


@cache
def frequencies(config: ModelConfig, *, stretched: bool = True) -> Tensor:
    """Radians per position [R] fp32, stretched by YaRN where the config says so and `stretched` is wanted."""
    dim = int(config.head_dim * config.partial_rotary_factor)
    plain = 1.0 / config.rope_theta ** (torch.arange(0, dim, 2, dtype=torch.float32, device="cpu") / dim)
    yarn = config.rope_scaling
    if yarn is None or not stretched:
        return plain
    low, high = yarn.ramp_bounds(dim, config.rope_theta)
    ramp = ((torch.arange(len(plain), dtype=torch.float32, device="cpu") - low) / (high - low)).clamp(0, 1)
    return plain / yarn.factor * ramp + plain * (1 - ramp)


def rotary_table(
    config: ModelConfig, positions_T: Tensor, stretched_T: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cosine and sine [T, R] fp32 of each position; `stretched` says where YaRN holds (None: everywhere)."""
    positions = positions_T.float()[:, None]
    # On the CPU whatever the default device: a model built on "meta" must not make a table without data.
    angles = positions * frequencies(config).to(positions.device)
    scale = config.rope_scaling.scale if config.rope_scaling else 1.0
    cos, sin = angles.cos() * scale, angles.sin() * scale
    if config.rope_scaling is None or stretched_T is None:
        return cos, sin
    plain = positions * frequencies(config, stretched=False).to(positions.device)
    chosen = stretched_T[:, None]
    return torch.where(chosen, cos, plain.cos()), torch.where(chosen, sin, plain.sin())
