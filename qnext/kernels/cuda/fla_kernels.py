"""The kernels of flash-linear-attention, where the library is installed and its backward is right."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Kernel(Protocol):
    """Takes rows [1, T, ...] and the documents' bounds as `cu_seqlens`; returns [1, T, ...] and a state."""

    def __call__(self, *inputs: Tensor, **options: Any) -> tuple[Tensor, Tensor | None]: ...


class Library(NamedTuple):
    """What the ops here take from it."""

    delta_rule: Kernel
    convolution: Kernel


def library_for(x: Tensor) -> Library | None:
    """The library, for what is computed of x: in bfloat16 on a CUDA device, as its kernels are."""
    return flash_linear_attention() if x.is_cuda and x.dtype == torch.bfloat16 else None


@cache
def flash_linear_attention() -> Library | None:
    """None where it is not installed, or refuses: its backward is wrong on Hopper with the Triton versions
    named here."""
    try:
        import triton
        from fla.modules.causal_conv1d import causal_conv1d
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule
    except ImportError:
        return None
    version = tuple(int(part) for part in triton.__version__.split("+")[0].split(".")[:3])
    if torch.cuda.get_device_capability()[0] == 9 and (3, 4, 0) <= version < (3, 7, 1):
        return None
    return Library(chunk_gated_delta_rule, causal_conv1d)
