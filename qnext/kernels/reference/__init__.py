"""The specification of every op in plain, differentiable PyTorch: right first, quick where that costs no
clarity.
"""

from .attention import attention, store
from .convolution import causal_conv
from .cross_entropy import cross_entropy
from .delta_rule import gated_delta_rule
from .experts import experts, route, swiglu
from .norm import gated_rms_norm, rms_norm
from .rotary import rotate

__all__ = [
    "attention",
    "causal_conv",
    "cross_entropy",
    "experts",
    "gated_delta_rule",
    "gated_rms_norm",
    "rms_norm",
    "rotate",
    "route",
    "store",
    "swiglu",
]
