"""The packed layout: what the packed form of a model consists of, by name, and which parameters of
`Qwen3Next` each part holds.

Read by `quant` (both directions), `packed_file` (shapes) and the network that runs on packed parts.
Invariant: every row of every parameter belongs to exactly one part; a tied output matrix is a part of its
own, made from the embedding. Parts come in the order of the forward pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from qnext.kernels.packed import ROWS

from .config import LayerType, ModelConfig
from .layout import layout

Form = Literal["matrix", "swiglu", "table", "vector"]


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of `sources`, one after another, as [`rows`, `columns`], `count` times (0: without a leading
    dimension).

    `form` says how they are stored: a "matrix" packed as it is; a "swiglu" packed with its halves (gate rows,
    then up rows) interleaved in blocks of 16, each half padded with zero rows to whole blocks; a "table" as a
    plain tensor; a "vector" as a plain float32 tensor, of one dimension where `columns` is 0.
    """

    name: str
    sources: tuple[str, ...]
    form: Form
    count: int
    rows: int
    columns: int

    @property
    def packed(self) -> bool:
        return self.form in ("matrix", "swiglu")

    @property
    def shape(self) -> tuple[int, ...]:
        """As stored, before packing."""
        rows = 2 * interleaved(self.rows // 2) if self.form == "swiglu" else self.rows
        shape = (self.count, rows, self.columns)
        return tuple(size for size in shape if size)

    @property
    def section(self) -> str:
        """The module whose parameters it holds: "layers.3", "mtp", or "" for the model itself."""
        words = self.name.split(".")
        return ".".join(words[:2]) if words[0] == "layers" else "mtp" if words[0] == "mtp" else ""


def interleaved(rows: int) -> int:
    """Rows of one half of a "swiglu" part as stored: whole blocks."""
    return -(-rows // ROWS) * ROWS


def parts(config: ModelConfig) -> list[Part]:
    """The packed form of a network of this shape."""
    sizes = _Sizes(config)
    found = [sizes.part("embed_tokens", "table")]
    for index, kind in enumerate(config.layer_types):
        found += _layer(sizes, f"layers.{index}.", kind, sparse=config.is_sparse(index))
    found.append(sizes.part("norm", "vector"))
    head = "embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    found.append(sizes.part("lm_head", "matrix", head))
    if config.mtp_layers:
        found += [sizes.part(f"mtp.pre_fc_norm_{each}", "vector") for each in ("embedding", "hidden")]
        found.append(sizes.part("mtp.fc", "matrix"))
        found += _layer(sizes, "mtp.layers.0.", "full_attention", sparse=True)
        found.append(sizes.part("mtp.norm", "vector"))
    return found


def sections(config: ModelConfig) -> list[tuple[str, list[Part]]]:
    """Parts that are made together, with the name of their module, in the order of the forward pass."""
    return [(name, list(group)) for name, group in groupby(parts(config), key=lambda part: part.section)]


class _Sizes:
    """Rows and columns of every parameter, added up from the published layout."""

    def __init__(self, config: ModelConfig) -> None:
        self.experts = config.num_experts
        self._rows: Counter[str] = Counter()
        self._columns: dict[str, int] = {}
        for entry in layout(config):
            for run in entry.parts:
                self._rows[run.parameter] += entry.groups * run.rows
                self._columns[run.parameter] = entry.shape[-1] if len(entry.shape) > 1 else 0

    def has(self, parameter: str) -> bool:
        return parameter in self._rows

    def part(self, name: str, form: Form, *sources: str, count: int = 0) -> Part:
        """Without `sources`: the parameter of that name, or its `weight`."""
        if not sources:
            sources = (name if name in self._rows else f"{name}.weight",)
        rows = sum(self._rows[source] for source in sources)
        columns = self._columns[sources[0]]
        return Part(name, sources, form, count, rows // (count or 1), columns)


def _layer(sizes: _Sizes, layer: str, kind: LayerType, *, sparse: bool) -> Iterator[Part]:
    yield sizes.part(f"{layer}input_layernorm", "vector")
    if kind == "full_attention":
        yield from _attention(sizes, f"{layer}self_attn.")
    else:
        linear = f"{layer}linear_attn."
        for name in ("qkvz_proj", "ba_proj"):
            yield sizes.part(linear + name, "matrix")
        for name in ("conv1d", "A_log", "dt_bias", "norm"):
            yield sizes.part(linear + name, "vector")
        yield sizes.part(f"{linear}out_proj", "matrix")
    yield sizes.part(f"{layer}post_attention_layernorm", "vector")
    mlp = f"{layer}mlp."
    if sparse:
        # the shared expert's gate reads what the router reads: one matrix, one pass
        yield sizes.part(f"{mlp}router", "matrix", f"{mlp}gate.weight", f"{mlp}shared_expert_gate.weight")
        yield sizes.part(f"{mlp}experts.gate_up_proj", "swiglu", count=sizes.experts)
        yield sizes.part(f"{mlp}experts.down_proj", "matrix", count=sizes.experts)
        mlp = f"{mlp}shared_expert."
    yield sizes.part(f"{mlp}gate_up_proj", "swiglu")
    yield sizes.part(f"{mlp}down_proj", "matrix")


def _attention(sizes: _Sizes, attention: str) -> Iterator[Part]:
    inputs = ("q_proj", "gate_proj", "k_proj", "v_proj")
    yield sizes.part(f"{attention}qgkv_proj", "matrix", *(f"{attention}{name}.weight" for name in inputs))
    biases = tuple(f"{attention}{name}.bias" for name in inputs)
    if sizes.has(biases[0]):
        yield sizes.part(f"{attention}qgkv_bias", "vector", *biases)
        yield sizes.part(f"{attention}o_bias", "vector", f"{attention}o_proj.bias")
    for name in ("q_norm", "k_norm"):
        yield sizes.part(attention + name, "vector")
    yield sizes.part(f"{attention}o_proj", "matrix")
