"""What a sequence leaves behind in each layer: the model declares its shapes and bytes, the engine owns it.

Made by `engine`, changed in place by the layers' ops. Invariant: no layer holds a cache of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .config import ModelConfig


@dataclass(frozen=True)
class StateSize:
    """Bytes of cache that a sequence takes. `kv_token` grows with each token; `delta` and `conv` do not."""

    kv_token: int
    delta: int
    conv: int

    @classmethod
    def of(cls, config: ModelConfig, itemsize: int = 2) -> StateSize:
        """For caches of `itemsize` bytes an element (2: bf16). The delta state is always fp32. Without
        MTP.
        """
        full = config.layer_types.count("full_attention")
        linear = config.layer_types.count("linear_attention")
        per_head = config.linear_key_head_dim * config.linear_value_head_dim
        return cls(
            kv_token=full * 2 * config.num_key_value_heads * config.head_dim * itemsize,
            delta=linear * config.linear_num_value_heads * per_head * 4,
            conv=linear * config.conv_dim * (config.linear_conv_kernel_dim - 1) * itemsize,
        )


@dataclass(frozen=True, eq=False)
class State:
    """Caches of all layers; an entry is None where the layer is of the other kind.

    `kv[layer]` = keys, values [pages, page_size, G, D]; `delta[layer]` [slots, V, C, U] fp32;
    `conv[layer]` [slots, channels, W-1]. A slot must be zeroed (`clear`) before a new sequence uses it.
    """

    kv: tuple[tuple[Tensor, Tensor] | None, ...]
    delta: tuple[Tensor | None, ...]
    conv: tuple[Tensor | None, ...]

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        *,
        pages: int,
        page_size: int,
        slots: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> State:
        """Zeroed caches for `pages * page_size` tokens and `slots` sequences."""
        kv_shape = (pages, page_size, config.num_key_value_heads, config.head_dim)
        heads = (config.linear_num_value_heads, config.linear_key_head_dim, config.linear_value_head_dim)
        window = (config.conv_dim, config.linear_conv_kernel_dim - 1)
        kv: list[tuple[Tensor, Tensor] | None] = []
        delta: list[Tensor | None] = []
        conv: list[Tensor | None] = []
        for kind in config.layer_types:
            full = kind == "full_attention"
            pair = [torch.zeros(kv_shape if full else 0, dtype=dtype, device=device) for _ in range(2)]
            kv.append((pair[0], pair[1]) if full else None)
            delta.append(None if full else torch.zeros(slots, *heads, dtype=torch.float32, device=device))
            conv.append(None if full else torch.zeros(slots, *window, dtype=dtype, device=device))
        return cls(tuple(kv), tuple(delta), tuple(conv))

    def clear(self, slot: int) -> None:
        """Make a slot ready for a new sequence."""
        for tensor in (*self.delta, *self.conv):
            if tensor is not None:
                tensor[slot].zero_()
