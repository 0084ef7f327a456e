"""The halves of a decoder layer on packed weights: each a handful of native calls on rows of fp32.

Made and called by `packed_network`. Their twins are the modules of `decoder`, on the numbers that the bytes
mean. Invariant: what a half returns lives in the workspace until its twin in the next layer is called.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from qnext.kernels.cpu.attention import AttentionWeights, gated_attention, store
from qnext.kernels.cpu.delta_net import DeltaNetWeights, delta_net
from qnext.kernels.cpu.experts import Choice, Experts, choose, mix
from qnext.kernels.cpu.linear import Matrix
from qnext.kernels.ops import DeltaCache
from qnext.kernels.packed import ROWS, Packed

from .config import ModelConfig
from .packed_step import PackedStep, Rows

Part = Packed | Tensor


class PackedDeltaNet:
    """See `deltanet.GatedDeltaNet`."""

    steady = True

    def __init__(self, parts: Mapping[str, Part], config: ModelConfig) -> None:
        names = ("qkvz_proj", "ba_proj", "out_proj")
        self.qkvz, self.ba, self.out = (Matrix(matrix(parts, name)) for name in names)
        self.gates, self.values = 2 * config.linear_num_value_heads, config.linear_value_dim
        self.weights = DeltaNetWeights.of(
            vector(parts, "conv1d"),
            vector(parts, "A_log"),
            vector(parts, "dt_bias"),
            vector(parts, "norm"),
            config.rms_norm_eps,
            config.linear_num_key_heads,
            config.linear_key_head_dim,
            config.linear_num_value_heads,
            config.linear_value_head_dim,
        )

    def __call__(
        self,
        x_TH: Tensor,
        inputs: Rows,
        step: PackedStep,
        conv: Tensor | None,
        delta: DeltaCache | None,
        out_TH: Tensor,
    ) -> Tensor:
        """`x` plus the mixer of `inputs`, which are `x` normalised, in `out`."""
        projected = step.product(inputs, self.qkvz, "projected")
        gates = step.product(inputs, self.ba, "ba")[:, : self.gates]
        mixed = step.workspace.take("mixed", (len(x_TH), self.values), torch.float32)
        caches, exact = (conv, delta), not step.coded
        delta_net(projected, gates, self.weights, step.packing, *caches, mixed, step.workspace, exact=exact)
        return step.product(step.rows(mixed), self.out, out_TH, add=x_TH)


class PackedAttention:
    """See `attention.GatedAttention`."""

    def __init__(self, parts: Mapping[str, Part], config: ModelConfig) -> None:
        packed = matrix(parts, "qgkv_proj")
        self.qgkv, self.out = Matrix(packed), Matrix(matrix(parts, "o_proj"))
        self.values = config.num_attention_heads * config.head_dim
        self.kv = Matrix(_last_rows(packed, 2 * self.values))
        self.bias, self.out_bias = (
            vector(parts, name) if name in parts else None for name in ("qgkv_bias", "o_bias")
        )
        self.steady = self.out_bias is None
        self.weights = AttentionWeights(
            vector(parts, "q_norm"),
            vector(parts, "k_norm"),
            config.rms_norm_eps,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.head_dim**-0.5,
        )

    def __call__(
        self,
        x_TH: Tensor,
        inputs: Rows,
        step: PackedStep,
        cache: tuple[Tensor, Tensor] | None,
        out_TH: Tensor,
    ) -> Tensor:
        """`x` plus the mixer of `inputs`, which are `x` normalised, in `out`."""
        projected = step.product(inputs, self.qgkv, "projected", add=self.bias)
        mixed = step.workspace.take("mixed", (len(x_TH), self.values), torch.float32)
        gated_attention(
            projected,
            self.weights,
            step.packing,
            step.rotary,
            cache,
            mixed,
            exact=not step.coded,
            workspace=step.workspace,
        )
        if self.out_bias is not None:
            x_TH = x_TH + self.out_bias
        return step.product(step.rows(mixed), self.out, out_TH, add=x_TH)

    def read(self, inputs: Rows, step: PackedStep, cache: tuple[Tensor, Tensor]) -> None:
        """See `attention.GatedAttention.read`."""
        bias = None if self.bias is None else self.bias[2 * self.values :]
        projected = step.product(inputs, self.kv, "kv", add=bias)
        store(projected, self.weights, step.packing, step.rotary, cache, workspace=step.workspace)


class PackedMoE:
    """See `moe.SparseMoE`: the router with the shared expert's gate, and all experts."""

    def __init__(self, parts: Mapping[str, Part], config: ModelConfig) -> None:
        self.router = Matrix(matrix(parts, "router"))
        self.top_k, self.normalise = config.num_experts_per_tok, config.norm_topk_prob
        routed = matrix(parts, "experts.gate_up_proj"), matrix(parts, "experts.down_proj")
        shared = matrix(parts, "shared_expert.gate_up_proj"), matrix(parts, "shared_expert.down_proj")
        self.count = config.num_experts
        alike = as_experts(shared, routed)
        self.experts = Experts(*routed, alike)
        self.shared = PackedMLP(*shared) if alike is None else None
        self.steady = alike is not None

    def __call__(self, x_TH: Tensor, inputs: Rows, step: PackedStep) -> Tensor:
        """`x` plus the experts of `inputs`, which are `x` normalised."""
        ready = inputs.ready(self.experts.gate_up)
        scores = step.product(inputs, self.router, "router")
        choice = choose(
            scores,
            self.count,
            self.top_k,
            step.workspace,
            normalise=self.normalise,
            shared=self.experts.shared,
        )
        if step.routing is not None:
            probs = scores[:, : self.count].softmax(-1)
            step.routing.append((probs, choice.experts[:, : self.top_k].long()))
        if self.shared is not None:
            x_TH = self.shared(x_TH, inputs, step, scores[:, self.count].sigmoid())
        out = step.workspace.take("whole", tuple(x_TH.shape), torch.float32)
        return mix(ready, choice, self.experts, x_TH, out, step.workspace)


class PackedMLP:
    """A SwiGLU that every token takes, as an expert without a router. See `layers.SwiGLU`."""

    steady = False

    def __init__(self, gate_up: Packed, down: Packed) -> None:
        self.experts = Experts(_stacked(gate_up), _stacked(down), None)

    def __call__(
        self, x_TH: Tensor, inputs: Rows, step: PackedStep, shares_T: Tensor | None = None
    ) -> Tensor:
        """`x` plus the SwiGLU of `inputs`, weighted by `shares`."""
        tokens = len(x_TH)
        shares = torch.ones(tokens) if shares_T is None else shares_T.contiguous()
        nobody = torch.empty(tokens, 0)
        choice = Choice(nobody, nobody, torch.tensor([0, tokens, tokens]), torch.arange(tokens), shares)
        out = step.workspace.take("dense", tuple(x_TH.shape), torch.float32)
        ready = inputs.ready(self.experts.gate_up)
        return mix(ready, choice, self.experts, x_TH, out, step.workspace)


def within(parts: Mapping[str, Part], prefix: str) -> dict[str, Part]:
    """The parts below a name, by the rest of theirs."""
    return {name.removeprefix(prefix): part for name, part in parts.items() if name.startswith(prefix)}


def matrix(parts: Mapping[str, Part], name: str) -> Packed:
    """A part that is packed."""
    found = parts[name]
    assert isinstance(found, Packed)
    return found


def vector(parts: Mapping[str, Part], name: str) -> Tensor:
    """A part that is a plain tensor."""
    found = parts[name]
    assert isinstance(found, Tensor)
    return found


def as_experts(shared: tuple[Packed, Packed], routed: tuple[Packed, Packed]) -> tuple[Packed, Packed] | None:
    """A shared expert's matrices cut into experts [S] as wide as the routed ones, which together do what it
    does; None where that cannot be done."""
    (up, down), (own_up, own_down) = shared, routed
    count = down.width // own_down.width
    if not (
        all(
            a.kind == b.kind and (a.group == b.group or not a.scales.numel())
            for a, b in zip(shared, routed, strict=True)
        )
        and (up.width, down.width) == (own_up.width, count * own_down.width)
        and (len(up.data), len(down.data)) == (count * own_up.data.shape[1], own_down.data.shape[1])
        and (count == 1 or own_down.columns == own_down.width)
    ):
        return None
    return _cut(up, 0, count, own_up), _cut(down, 1, count, own_down)


def _cut(packed: Packed, dim: int, count: int, like: Packed) -> Packed:
    """In so many matrices, by blocks of rows or by columns."""
    data, scales = (
        part.view(*part.shape[:dim], count, -1, *part.shape[dim + 1 :]).movedim(dim, 0).contiguous()
        if part.numel()
        else part
        for part in (packed.data, packed.scales)
    )
    return like._replace(data=data, scales=scales)


def _last_rows(packed: Packed, first: int) -> Packed:
    """The rows from `first` on, which begins a block."""
    block = first // ROWS
    scales = packed.scales[block:] if packed.scales.numel() else packed.scales
    return packed._replace(data=packed.data[block:], scales=scales, rows=packed.rows - first)


def _stacked(packed: Packed) -> Packed:
    """As the only one of several."""
    scales = packed.scales[None] if packed.scales.numel() else packed.scales
    return packed._replace(data=packed.data[None], scales=scales)
