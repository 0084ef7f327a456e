"""The layout: how the published tensors of a checkpoint and the parameters of `Qwen3Next` hold the same rows.

Read by `inventory` (names and shapes) and by `weights` (both directions, so import and export cannot
disagree). Invariant: every row of every parameter belongs to exactly one row of one published tensor. All
that differs is the order of rows: seen as `[rows, width]`, a published tensor is the concatenation of runs of
parameter rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from .config import LayerType, ModelConfig


@dataclass(frozen=True, slots=True)
class Run:
    """`rows` consecutive rows of a parameter, from row `first` of its `[rows, width]` view."""

    parameter: str
    first: int
    rows: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One published tensor: `groups` groups of rows, each made of the next `rows` of every part in turn."""

    name: str
    shape: tuple[int, ...]
    sizes: tuple[str, ...]  # `shape` as the fields of config.json it comes from
    groups: int
    parts: tuple[Run, ...]

    def runs(self) -> Iterator[Run]:
        """The parameter rows that this tensor holds, in the order of its own rows."""
        for group in range(self.groups):
            for part in self.parts:
                yield Run(part.parameter, part.first + group * part.rows, part.rows)


_Q = "num_attention_heads * head_dim"
_KV = "num_key_value_heads * head_dim"
_K = "linear_num_key_heads * linear_key_head_dim"
_V = "linear_num_value_heads * linear_value_head_dim"


def layout(config: ModelConfig) -> list[Entry]:
    """Every published tensor of a checkpoint of this shape."""
    entries: list[Entry] = []
    top, trunk = _Section(config, entries, "", ""), _Section(config, entries, "model.", "")
    trunk.same("embed_tokens.weight", "vocab_size", "hidden_size")
    for index, kind in enumerate(config.layer_types):
        _layer(trunk.inside(f"layers.{index}"), kind, sparse=config.is_sparse(index))
    trunk.same("norm.weight", "hidden_size")
    if not config.tie_word_embeddings:
        top.same("lm_head.weight", "vocab_size", "hidden_size")
    if config.mtp_layers:
        mtp = top.inside("mtp")
        mtp.same("fc.weight", "hidden_size", "2 * hidden_size")
        for name in ("pre_fc_norm_embedding.weight", "pre_fc_norm_hidden.weight", "norm.weight"):
            mtp.same(name, "hidden_size")
        for index in range(config.mtp_layers):
            _layer(mtp.inside(f"layers.{index}"), "full_attention", sparse=True)
    return entries


@dataclass(frozen=True)
class _Section:
    """A part of the network: collects entries under a published prefix and ours."""

    config: ModelConfig
    entries: list[Entry]
    published: str
    ours: str

    def inside(self, name: str) -> _Section:
        return replace(self, published=f"{self.published}{name}.", ours=f"{self.ours}{name}.")

    def size(self, formula: str) -> int:
        """`formula` is a sum of products of whole numbers and fields of config.json."""
        terms = (term.split(" * ") for term in formula.split(" + "))
        return sum(
            math.prod(int(x) if x.isdigit() else getattr(self.config, x) for x in term) for term in terms
        )

    def add(self, name: str, sizes: tuple[str, ...], *parts: Run, groups: int = 1) -> None:
        shape = tuple(self.size(formula) for formula in sizes)
        assert groups * sum(part.rows for part in parts) == shape[0], name
        parts = tuple(replace(part, parameter=self.ours + part.parameter) for part in parts)
        self.entries.append(Entry(self.published + name, shape, sizes, groups, parts))

    def same(self, name: str, *sizes: str) -> None:
        """A tensor that has the same name and rows on both sides."""
        self.add(name, sizes, Run(name, 0, self.size(sizes[0])))


def _layer(layer: _Section, kind: LayerType, *, sparse: bool) -> None:
    layer.same("input_layernorm.weight", "hidden_size")
    layer.same("post_attention_layernorm.weight", "hidden_size")
    if kind == "full_attention":
        _attention(layer.inside("self_attn"))
    else:
        _linear_attention(layer.inside("linear_attn"))
    if sparse:
        _experts(layer.inside("mlp"))
    else:
        _swiglu(layer.inside("mlp"), "intermediate_size")


def _attention(attention: _Section) -> None:
    heads, dim = attention.config.num_attention_heads, attention.config.head_dim
    for leaf in ("weight", "bias") if attention.config.attention_bias else ("weight",):
        hidden, attended = (("hidden_size",), (_Q,)) if leaf == "weight" else ((), ())
        # published per head: the query's rows, then the gate's
        halves = (Run(f"q_proj.{leaf}", 0, dim), Run(f"gate_proj.{leaf}", 0, dim))
        attention.add(f"q_proj.{leaf}", (f"2 * {_Q}", *hidden), *halves, groups=heads)
        attention.same(f"k_proj.{leaf}", _KV, *hidden)
        attention.same(f"v_proj.{leaf}", _KV, *hidden)
        attention.same(f"o_proj.{leaf}", "hidden_size", *attended)
    attention.same("q_norm.weight", "head_dim")
    attention.same("k_norm.weight", "head_dim")


def _linear_attention(linear: _Section) -> None:
    heads = linear.config.linear_num_key_heads
    shared = linear.config.linear_num_value_heads // heads
    key, value = linear.config.linear_key_head_dim, shared * linear.config.linear_value_head_dim
    # published per key head: its q, k, v and z (and its b and a); ours: all of q, then all of k, ...
    qkvz, first = [], 0
    for rows in (key, key, value, value):
        qkvz.append(Run("qkvz_proj.weight", first, rows))
        first += heads * rows
    linear.add("in_proj_qkvz.weight", (f"2 * {_K} + 2 * {_V}", "hidden_size"), *qkvz, groups=heads)
    ba = (Run("ba_proj.weight", 0, shared), Run("ba_proj.weight", heads * shared, shared))
    linear.add("in_proj_ba.weight", ("2 * linear_num_value_heads", "hidden_size"), *ba, groups=heads)
    linear.same("conv1d.weight", f"2 * {_K} + {_V}", "1", "linear_conv_kernel_dim")
    linear.same("A_log", "linear_num_value_heads")
    linear.same("dt_bias", "linear_num_value_heads")
    linear.same("norm.weight", "linear_value_head_dim")
    linear.same("out_proj.weight", "hidden_size", _V)


def _experts(mlp: _Section) -> None:
    mlp.same("gate.weight", "num_experts", "hidden_size")
    inner, hidden = mlp.config.moe_intermediate_size, mlp.config.hidden_size
    for expert in range(mlp.config.num_experts):
        for half, name in enumerate(("gate_proj", "up_proj")):
            run = Run("experts.gate_up_proj", (2 * expert + half) * inner, inner)
            mlp.add(f"experts.{expert}.{name}.weight", ("moe_intermediate_size", "hidden_size"), run)
        run = Run("experts.down_proj", expert * hidden, hidden)
        mlp.add(f"experts.{expert}.down_proj.weight", ("hidden_size", "moe_intermediate_size"), run)
    _swiglu(mlp.inside("shared_expert"), "shared_expert_intermediate_size")
    mlp.same("shared_expert_gate.weight", "1", "hidden_size")


def _swiglu(mlp: _Section, inner: str) -> None:
    rows = mlp.size(inner)
    for half, name in enumerate(("gate_proj", "up_proj")):
        mlp.add(f"{name}.weight", (inner, "hidden_size"), Run("gate_up_proj.weight", half * rows, rows))
    mlp.same("down_proj.weight", "hidden_size", inner)
