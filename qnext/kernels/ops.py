"""The contract of the kernels: what a backend offers, with shapes. `reference` defines what each must
compute.

Called by `model`'s layers through `select.backend`. Legend: T tokens of the row, N sequences, H hidden
size, Q/G query and KV heads of width D, K/V key and value heads of width C and U of the delta rule, E
experts, I their width, P pages of B cells, S slots, W width of the convolution, D the most tokens drafted
at once, R rows of logits over a vocabulary of V.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

SCALE = 4  # bytes of the fp32 scale that follows a head's codes, where keys and values are codes of 8 bits


def stored_width(width: int, dtype: torch.dtype) -> int:
    """Numbers that a head of keys or values takes in a cache."""
    return width + SCALE if dtype == torch.int8 else width


class Window(Protocol):
    """Where accepted drafts go into a row, and where new ones are kept: both as (slots, places) [R]."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each sequence, accepted drafts of the last window included."""
        ...

    @property
    def replayed(self) -> tuple[Tensor, Tensor]:
        """The accepted drafts in the caches, sequence by sequence."""
        ...

    @property
    def index(self) -> Tensor:
        """Rows of (own tokens, replayed ones), put together, in the order of the extended row."""
        ...

    @property
    def own(self) -> Tensor:
        """Places of the own tokens [T] in the extended row."""
        ...

    @property
    def drafted(self) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """The places for drafts in the caches, and the drafts' own rows."""
        ...


class DeltaCache(NamedTuple):
    """State of the delta rule [S, V, C, U] fp32, and for each drafted token that it has not taken in the
    inputs k [S, D, K, C], v [S, D, V, U] and gates (decay, beta) [S, D, 2, V] fp32."""

    state: Tensor
    k: Tensor
    v: Tensor
    gates: Tensor


class Row(Protocol):
    """How sequences lie in the row, and where their caches are (`qnext.model.Packing` is one)."""

    @property
    def lengths(self) -> tuple[int, ...]: ...
    @property
    def contexts(self) -> tuple[int, ...]: ...
    @property
    def starts(self) -> tuple[int, ...]: ...
    @property
    def pages(self) -> Tensor | None: ...
    @property
    def slots(self) -> Tensor | None: ...
    @property
    def cells(self) -> Tensor | None: ...
    @property
    def first(self) -> int:
        """Leading cells of each sequence that hold nothing."""
        ...

    @property
    def drafts(self) -> tuple[int, ...]:
        """Trailing tokens of each sequence that may yet be rejected: recurrent states do not take them in."""
        ...

    @property
    def replays(self) -> tuple[int, ...]:
        """Drafts of each sequence's last window that were accepted: states take them in first."""
        ...

    @property
    def saves(self) -> tuple[tuple[int, int, int], ...]:
        """(sequence, count, slot): the state after so many of its tokens here goes to that slot too."""
        ...

    @property
    def window(self) -> Window | None:
        """None where there are no drafts and no replays."""
        ...

    @property
    def table(self) -> np.ndarray:
        """Start, length, context, slot (-1: none), drafts, replays [N, 6] int64."""
        ...

    @property
    def save_table(self) -> np.ndarray:
        """`saves` [., 3] int64."""
        ...


class Ops(Protocol):
    """Every function of a backend. Caches are changed in place; all else is returned."""

    def rms_norm(self, x_TH: Tensor, weight_H: Tensor, eps: float) -> Tensor:
        """Zero-centred RMS norm over the last dimension: x / rms(x) * (1 + weight), in fp32."""
        ...

    def gated_rms_norm(self, x_TVU: Tensor, gate_TVU: Tensor, weight_U: Tensor, eps: float) -> Tensor:
        """x / rms(x) * weight * silu(gate), in fp32, rounded to the gate's dtype."""
        ...

    def rotate(self, x_TQD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
        """Rotary positions on the first 2R of D dimensions, halves paired (NeoX layout)."""
        ...

    def attention(
        self,
        q_TQD: Tensor,
        k_TGD: Tensor,
        v_TGD: Tensor,
        row: Row,
        cache: tuple[Tensor, Tensor] | None,
        scale: float,
    ) -> Tensor:
        """Causal grouped-query attention within each sequence -> [T, Q, D].

        With a cache (keys and values [P, B, G, D]) new keys and values are stored first, earlier ones read.
        """
        ...

    def store(self, k_TGD: Tensor, v_TGD: Tensor, row: Row, cache: tuple[Tensor, Tensor]) -> None:
        """Put new keys and values into the cache, as `attention` does, and attend to nothing."""
        ...

    def causal_conv(self, x_TC: Tensor, weight_CW: Tensor, row: Row, state_SWC: Tensor | None) -> Tensor:
        """Depthwise causal convolution, then SiLU. `state` [S, W-1+D, C] holds each sequence's last inputs:
        W-1 that are certain, then up to D drafted ones."""
        ...

    def gated_delta_rule(
        self,
        q_TKC: Tensor,
        k_TKC: Tensor,
        v_TVU: Tensor,
        g_TV: Tensor,
        beta_TV: Tensor,
        row: Row,
        cache: DeltaCache | None,
    ) -> Tensor:
        """Gated delta rule with L2-normalised q and k -> [T, V, U] fp32. Drafts are not taken into the state;
        their inputs are kept in the cache, and replayed in the next call where they were accepted."""
        ...

    def route(self, logits_TE: Tensor, top_k: int, normalise: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Softmax over all experts in fp32 -> probabilities [T, E], weights [T, k] fp32, chosen [T, k]."""
        ...

    def experts(
        self, x_TH: Tensor, weights_Tk: Tensor, chosen_Tk: Tensor, gate_up_E2IH: Tensor, down_EHI: Tensor
    ) -> Tensor:
        """Weighted sum of the chosen SwiGLU experts -> [T, H]."""
        ...

    def swiglu(self, x_TH: Tensor, gate_up_2IH: Tensor, down_HI: Tensor) -> Tensor:
        """down @ (silu(gate @ x) * (up @ x)) -> [T, H]."""
        ...

    def cross_entropy(
        self, logits_RV: Tensor, targets_R: Tensor, weights_R: Tensor, z_weight: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """-log softmax(logits)[target] fp32, squared log-sums of exp(logits) fp32, and top tokens int64, each
        [R]. In the place of the logits is then the gradient of weight * (the first + z_weight * the second).
        """
        ...
