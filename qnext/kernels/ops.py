"""The contract of the kernels: what a backend offers, with shapes. `reference` defines what each must
compute.

Called by `model`'s layers through `select.backend`. Legend: T tokens of the row, N sequences, H hidden size,
Q/G query and KV heads of width D, K/V key and value heads of width C and U of the delta rule, E experts, I
their width, P pages of B cells, S slots, W width of the convolution.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


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

    def causal_conv(self, x_TC: Tensor, weight_CW: Tensor, row: Row, state_SCW: Tensor | None) -> Tensor:
        """Depthwise causal convolution, then SiLU. `state` [S, C, W-1] holds each sequence's last inputs."""
        ...

    def gated_delta_rule(
        self,
        q_TKC: Tensor,
        k_TKC: Tensor,
        v_TVU: Tensor,
        g_TV: Tensor,
        beta_TV: Tensor,
        row: Row,
        state: Tensor | None,
    ) -> Tensor:
        """Gated delta rule with L2-normalised q and k -> [T, V, U] fp32. `state` [S, V, C, U] fp32, in
        place.
        """
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
