"""The ops of a network that learns on a CPU: forward and backward by hand, loops compiled by Numba around
torch's matrix products.

What is given a cache, another device or another dtype than fp32 and bf16 goes to `reference`, the twin of
all. One thread runs the loops; matrix products have as many as torch.
"""

from .attention import attention
from .convolution import causal_conv
from .cross_entropy import cross_entropy
from .delta_rule import gated_delta_rule
from .experts import experts, swiglu
from .norm import gated_rms_norm, rms_norm

__all__ = [
    "attention",
    "causal_conv",
    "cross_entropy",
    "experts",
    "gated_delta_rule",
    "gated_rms_norm",
    "rms_norm",
    "swiglu",
]
