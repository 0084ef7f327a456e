"""The ops of a network that learns on CUDA: few large launches whatever the number of documents, and nothing
that waits for the device.

What is given a cache, or float32 where a kernel has bfloat16 alone, goes to `reference`, the twin of all.
"""

from .attention import attention
from .convolution import causal_conv
from .delta_rule import gated_delta_rule
from .experts import experts
from .norm import gated_rms_norm, rms_norm

__all__ = [
    "attention",
    "causal_conv",
    "experts",
    "gated_delta_rule",
    "gated_rms_norm",
    "rms_norm",
]
