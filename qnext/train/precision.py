"""The numbers in which matrix products are made.

Asked by whatever makes many of them. Invariant: weights, momenta and sums stay float32.
"""

from functools import cache

import torch


@cache
def product_dtype(kind: str) -> torch.dtype:
    """The quickest numbers that are good enough for products on a device: bfloat16, but float32 on a CPU that
    has to take bfloat16 apart (AVX2: 44 GFLOP/s in float32, 2 in bfloat16)."""
    if kind != "cpu":
        return torch.bfloat16
    quick = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if quick else torch.float32
