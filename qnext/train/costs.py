"""Costs: what training a network of a given shape takes, in FLOPs and bytes, as formulae with their sources.

Used by `planner`. Invariant: parameters are counted from the checkpoint's own layout, as `model/summary`
does; everything else is arithmetic on a `Shape`, without assumptions about machines.

Sources of the formulae:
* a matrix costs a token 2 FLOPs a parameter forward and 4 backward: Kaplan et al. 2020, section 2.1;
* attention: scores and weighted values, 2 FLOPs a channel of all query heads each, over the tokens seen: the
  same section, but for the causal half, (T + 1) / 2 tokens on average in a row of T;
* the delta rule: the four steps of `kernels/reference/delta_rule.py` on a state of key by value channels:
  decay 1, prediction 2, correction 2, reading 2, so 7 FLOPs an element and token;
* model FLOPs leave out what activation checkpointing computes again: Chowdhery et al. 2022, appendix B;
* bytes of a parameter: `train/trainer` and `train/optim` keep fp32 weights and gradients, one fp32 momentum
  for Muon's matrices, two moments for AdamW's parameters;
* activations under checkpointing: each layer's input is kept, and one layer's own while it is computed again:
  Korthikanti et al. 2022, section 5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qnext.model.config import ModelConfig
from qnext.model.layout import Entry, layout

from .loss import ROWS_PER_CHUNK
from .optim import is_matrix

BACKWARD = 2  # times the forward
DELTA_FLOPS = 7  # an element of the state, a token


@dataclass(frozen=True)
class Shape:
    """Sizes of a network that costs follow from. Counts of parameters, but for the fields said otherwise.

    routed: those of routed experts, which expert parallelism splits. active: what a token uses in the trunk,
    output matrix included, embedding not; mtp_active: the same in one pass of the MTP head. matrices: those
    that Muon takes. score_width: channels of all query heads, summed over layers with attention, mtp_score
    that of the MTP head. delta_state: elements of the recurrent state, summed over layers. largest_layer,
    largest_routed: of one layer. layer_width: channels that one layer makes of a token in the widest layer.
    """

    total: int
    routed: int
    active: int
    matrices: int
    hidden: int
    layers: int
    vocabulary: int
    score_width: int
    largest_layer: int
    layer_width: int
    largest_routed: int = 0
    delta_state: int = 0
    mtp: int = 0
    mtp_active: int = 0
    mtp_score: int = 0

    @classmethod
    def of(cls, config: ModelConfig) -> Shape:
        """The shape of a Qwen3-Next."""
        entries = layout(config)
        trunk = [entry for entry in entries if not entry.name.startswith("mtp.")]
        head = config.vocab_size * config.hidden_size
        unread = 0 if config.tie_word_embeddings else head  # the embedding table
        mtp = [entry for entry in entries if entry.name.startswith("mtp.")]
        full, linear = (config.layer_types.count(kind) for kind in ("full_attention", "linear_attention"))
        queries = config.num_attention_heads * config.head_dim
        state = config.linear_num_value_heads * config.linear_key_head_dim * config.linear_value_head_dim
        layers = [
            [entry for entry in trunk if entry.name.startswith(f"model.layers.{index}.")]
            for index in range(config.num_hidden_layers)
        ]
        return cls(
            total=_count(entries),
            routed=_count(_routed(entries)),
            active=_active(trunk, config) - unread,
            matrices=_count([entry for entry in entries if is_matrix(entry.parts[0].parameter)]),
            hidden=config.hidden_size,
            layers=config.num_hidden_layers,
            vocabulary=config.vocab_size,
            score_width=full * queries,
            largest_layer=max(map(_count, layers)),
            largest_routed=max(_count(_routed(layer)) for layer in layers),
            layer_width=max(_width(layer, config) for layer in layers),
            delta_state=linear * state,
            mtp=_count(mtp),
            mtp_active=_active(mtp, config) + head if mtp else 0,
            mtp_score=config.mtp_layers * queries,
        )

    @classmethod
    def dense(
        cls,
        *,
        hidden: int,
        layers: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        inner: int,
        vocabulary: int,
    ) -> Shape:
        """The shape of a dense Qwen3: grouped attention with norms of q and k, SwiGLU, an output matrix of
        its own."""
        queries, keys = heads * head_dim, kv_heads * head_dim
        matrices = 2 * hidden * queries + 2 * hidden * keys + 3 * hidden * inner
        layer = matrices + 2 * hidden + 2 * head_dim
        table = vocabulary * hidden
        return cls(
            total=layers * layer + hidden + 2 * table,
            routed=0,
            active=layers * layer + hidden + table,
            matrices=layers * matrices,
            hidden=hidden,
            layers=layers,
            vocabulary=vocabulary,
            score_width=layers * queries,
            largest_layer=layer,
            layer_width=2 * queries + 2 * keys + 2 * inner + 2 * hidden,
        )

    def forward_flops(self, sequence: int, mtp_depth: int = 0) -> float:
        """Of one token, on average in a row of `sequence` tokens, with so many passes of the MTP head."""
        seen = (sequence + 1) / 2
        trunk = 2 * self.active + 4 * self.score_width * seen + DELTA_FLOPS * self.delta_state
        return trunk + mtp_depth * (2 * self.mtp_active + 4 * self.mtp_score * seen)

    def training_flops(self, sequence: int, mtp_depth: int = 0) -> float:
        """Of one token, forward and backward."""
        return (1 + BACKWARD) * self.forward_flops(sequence, mtp_depth)

    def state_bytes(self) -> int:
        """Of weights, gradients and optimiser state in all: fp32, 12 bytes for Muon's, 16 for AdamW's."""
        return 12 * self.matrices + 16 * (self.total - self.matrices)

    def gathered_bytes(self, expert_parallel: int = 1) -> float:
        """Of bf16 weights of two layers, the one at work and the one that is fetched, its experts split."""
        rest = self.largest_layer - self.largest_routed
        return 2 * 2 * (rest + self.largest_routed / expert_parallel)

    def activation_bytes(self, tokens: int, *, checkpointing: bool) -> int:
        """Of `tokens` at once, in bf16; with the logits of a chunk, in fp32."""
        kept = self.layers * self.hidden if checkpointing else self.layers * self.layer_width
        at_work = self.layer_width if checkpointing else 0
        logits = min(tokens, ROWS_PER_CHUNK) * self.vocabulary * 4
        return 2 * tokens * (kept + at_work) + logits


def _count(entries: list[Entry]) -> int:
    return sum(math.prod(entry.shape) for entry in entries)


def _routed(entries: list[Entry]) -> list[Entry]:
    return [entry for entry in entries if ".experts." in entry.name]


def _active(entries: list[Entry], config: ModelConfig) -> int:
    """Parameters that one token uses of these."""
    experts = _count(_routed(entries))
    chosen = experts // config.num_experts * config.num_experts_per_tok if experts else 0
    return _count(entries) - experts + chosen


def _width(layer: list[Entry], config: ModelConfig) -> int:
    """Channels that the matrices of a layer make of one token, of chosen experts only, and its two norms."""
    matrices = [entry for entry in layer if len(entry.shape) == 2]
    routed = sum(entry.shape[0] for entry in _routed(matrices))
    rest = sum(entry.shape[0] for entry in matrices) - routed
    chosen = routed // config.num_experts * config.num_experts_per_tok if routed else 0
    return rest + chosen + 2 * config.hidden_size
