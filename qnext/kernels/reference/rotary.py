"""Rotary position embedding on the leading part of a head."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x_TQD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Rotate dimension i against i + R for i < R; dimensions from 2R on pass unchanged."""
    half = cos_TR.shape[-1]
    cos, sin = cos_TR[:, None], sin_TR[:, None]
    a, b, rest = x_TQD[..., :half].float(), x_TQD[..., half : 2 * half].float(), x_TQD[..., 2 * half :]
    turned = torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x_TQD.dtype)
    return torch.cat((turned, rest), -1)
