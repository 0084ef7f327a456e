"""What a sequence leaves behind in each layer: the model declares its shapes and bytes, the engine owns it.

Made by `engine`, changed in place by the layers' ops. Invariant: no layer holds a cache of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from qnext.kernels import memory
from qnext.kernels.ops import SCALE, DeltaCache, stored_width

from .config import ModelConfig


@dataclass(frozen=True)
class StateSize:
    """Bytes of cache that a sequence takes. `kv_token` grows with each token; the rest does not: `delta` and
    `conv`, and what `drafts` tokens leave beside them (`window`) with the last hidden state (`hidden`)."""

    kv_token: int
    delta: int
    conv: int
    window: int = 0
    hidden: int = 0

    @classmethod
    def of(
        cls,
        config: ModelConfig,
        itemsize: int = 2,
        drafts: int = 0,
        *,
        mtp: bool = False,
        kept: int = 0,
    ) -> StateSize:
        """For keys and values of `itemsize` bytes an element (2: bf16; 1: codes, with a scale a head), and
        `kept` bytes for all else (0: as many), but the delta state, which is fp32. With `drafts` tokens that
        may be guessed at once; with `mtp`, by a head that has keys and values of its own.
        """
        kept = kept or itemsize
        full = config.layer_types.count("full_attention") + mtp
        linear = config.layer_types.count("linear_attention")
        keys, values = config.linear_num_key_heads, config.linear_num_value_heads
        widths = config.linear_key_head_dim, config.linear_value_head_dim
        head = config.head_dim * itemsize + (SCALE if itemsize == 1 else 0)
        drafted = (keys * widths[0] + values * widths[1] + config.conv_dim) * kept + 2 * values * 4
        return cls(
            kv_token=full * 2 * config.num_key_value_heads * head,
            delta=linear * values * widths[0] * widths[1] * 4,
            conv=linear * config.conv_dim * (config.linear_conv_kernel_dim - 1) * kept,
            window=linear * drafts * drafted,
            hidden=config.hidden_size * kept if mtp else 0,
        )

    @property
    def slot(self) -> int:
        """Bytes of all that does not grow."""
        return self.delta + self.conv + self.window + self.hidden


@dataclass(frozen=True, eq=False)
class State:
    """Caches of all layers; an entry is None where the layer is of the other kind.

    `pages` [pages, layers, 2, page_size, G, D] is one piece of memory for all keys and values; `kv[layer]` =
    its keys and values [pages, page_size, G, D] of that layer, `mtp` those of the MTP head; where they are
    int8 codes, D counts those of a head's scale too (`stored_width`). `delta[layer]`
    [slots, V, C, U] fp32 with its window, `conv[layer]` [slots, W-1+D, channels], `hidden` [slots, H] the
    last certain token's hidden state. A slot must be cleared before a new sequence uses it.
    """

    pages: Tensor
    kv: tuple[tuple[Tensor, Tensor] | None, ...]
    mtp: tuple[Tensor, Tensor] | None
    delta: tuple[DeltaCache | None, ...]
    conv: tuple[Tensor | None, ...]
    hidden: Tensor | None

    @classmethod
    def allocate(
        cls,
        config: ModelConfig,
        *,
        pages: int,
        page_size: int,
        slots: int,
        dtype: torch.dtype,
        kept: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        drafts: int = 0,
        mtp: bool = False,
    ) -> State:
        """Zeroed caches for `pages * page_size` tokens and `slots` sequences with up to `drafts` drafts.

        Keys and values are of `dtype`, all else of `kept` (None: the same), but the delta state, in fp32."""
        full = [kind == "full_attention" for kind in config.layer_types]
        kv_heads = (page_size, config.num_key_value_heads, stored_width(config.head_dim, dtype))
        keys, values = config.linear_num_key_heads, config.linear_num_value_heads
        key_width, value_width = config.linear_key_head_dim, config.linear_value_head_dim

        def zeros(*shape: int, of: torch.dtype = dtype) -> Tensor:
            # Written, not only promised: memory that is missing is missed now.
            if torch.device(device).type == "cpu":
                return memory.take(shape, of).zero_()
            return torch.empty(shape, dtype=of, device=device).zero_()

        kept = kept or dtype
        kv_memory = zeros(pages, sum(full) + mtp, 2, *kv_heads)
        pairs = [(kv_memory[:, i, 0], kv_memory[:, i, 1]) for i in range(kv_memory.shape[1])]
        delta = [
            DeltaCache(
                zeros(slots, values, key_width, value_width, of=torch.float32),
                zeros(slots, drafts, keys, key_width, of=kept),
                zeros(slots, drafts, values, value_width, of=kept),
                zeros(slots, drafts, 2, values, of=torch.float32),
            )
            for _ in range(full.count(False))
        ]
        rows = config.linear_conv_kernel_dim - 1 + drafts
        conv = [zeros(slots, rows, config.conv_dim, of=kept) for _ in delta]
        return cls(
            kv_memory,
            tuple(pairs[sum(full[:i])] if attends else None for i, attends in enumerate(full)),
            pairs[-1] if mtp else None,
            tuple(None if attends else delta[i - sum(full[:i])] for i, attends in enumerate(full)),
            tuple(None if attends else conv[i - sum(full[:i])] for i, attends in enumerate(full)),
            zeros(slots, config.hidden_size, of=kept) if mtp else None,
        )

    @cached_property
    def certain(self) -> list[Tensor]:
        """The tensors whose first dimension is the slot, but for the windows of delta states, which say
        nothing where no draft is to be replayed; widest elements first (bytes then stay aligned)."""
        found = [cache.state for cache in self.delta if cache is not None]
        found += [tensor for tensor in (*self.conv, self.hidden) if tensor is not None]
        return sorted(found, key=lambda tensor: -tensor.element_size())

    @cached_property
    def slotted(self) -> list[Tensor]:
        """All tensors whose first dimension is the slot, those of `certain` first."""
        windows = [tensor for cache in self.delta if cache is not None for tensor in cache[1:]]
        return self.certain + sorted(windows, key=lambda tensor: -tensor.element_size())

    def clear(self, slot: int) -> None:
        """Make a slot ready for a new sequence."""
        for tensor in self.slotted:
            tensor[slot].zero_()
