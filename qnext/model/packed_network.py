"""The network on packed weights: the fast twin of `Qwen3Next` on a CPU, for serving only.

Made by `network.load_network`, run by `engine/runner` like the other. Invariant: it computes what `Qwen3Next`
would on the numbers that the packed bytes mean, in fp32; with `activations` "int8" the inputs of quantised
matrices are rounded to 8 bits first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, TypeVar

import numba
import torch
from torch import Tensor

from qnext.kernels.cpu import attention, delta_net
from qnext.kernels.cpu.embedding import check, embed
from qnext.kernels.cpu.jit import warn_of_slow_threads
from qnext.kernels.cpu.linear import Matrix, linear
from qnext.kernels.cpu.rotation import turn
from qnext.kernels.cpu.tape import Tapes
from qnext.kernels.cpu.workspace import Workspace
from qnext.kernels.ops import DeltaCache

from .config import LayerType, ModelConfig
from .layers import Routing
from .mtp import ungained
from .packed_layers import (
    PackedAttention,
    PackedDeltaNet,
    PackedMLP,
    PackedMoE,
    Part,
    matrix,
    vector,
    within,
)
from .packed_step import PackedStep, Rows, laid, lay_down
from .packing import Packing
from .rotary import frequencies
from .state import State

TAPED = 2**16  # scores that are rather copied than asked for anew
READ = 32  # the longest piece that the head reads from a tape: to read takes the same calls for any length
Activations = Literal["int8", "exact"]
T = TypeVar("T")


def supported(config: ModelConfig) -> bool:
    """Whether the CPU kernels can do a network of this shape; `Qwen3Next` can do all."""
    heads = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    deltas = (
        config.linear_num_key_heads,
        config.linear_key_head_dim,
        config.linear_num_value_heads,
        config.linear_value_head_dim,
    )
    return (
        config.hidden_size % 16 == 0
        and attention.supported(*heads, torch.float32)
        and delta_net.supported(*deltas, config.linear_conv_kernel_dim)
    )


class PackedLayer:
    """See `decoder.DecoderLayer`."""

    def __init__(
        self, parts: Mapping[str, Part], config: ModelConfig, kind: LayerType, *, sparse: bool
    ) -> None:
        self.eps = config.rms_norm_eps
        self.norms = vector(parts, "input_layernorm"), vector(parts, "post_attention_layernorm")
        self.mixer: PackedDeltaNet | PackedAttention
        if kind == "linear_attention":
            self.mixer = PackedDeltaNet(within(parts, "linear_attn."), config)
        else:
            self.mixer = PackedAttention(within(parts, "self_attn."), config)
        mlp = within(parts, "mlp.")
        self.mlp = (
            PackedMoE(mlp, config)
            if sparse
            else PackedMLP(matrix(mlp, "gate_up_proj"), matrix(mlp, "down_proj"))
        )
        # whether it does nothing but call kernels about memory that stays
        self.steady = self.mixer.steady and self.mlp.steady

    def __call__(
        self,
        x_TH: Tensor,
        step: PackedStep,
        kv: tuple[Tensor, Tensor] | None,
        conv: Tensor | None,
        delta: DeltaCache | None,
    ) -> Tensor:
        mixed_TH = step.between(x_TH)
        for span, piece in step.pieces:
            own, out = x_TH[span], mixed_TH[span]
            inputs = piece.rows(own, self.norms[0], self.eps)
            if isinstance(self.mixer, PackedDeltaNet):
                self.mixer(own, inputs, piece, conv, delta, out)
            else:
                self.mixer(own, inputs, piece, kv, out)
        return self.mlp(mixed_TH, step.rows(mixed_TH, self.norms[1], self.eps), step)


class PackedMTP:
    """See `mtp.MTPHead`."""

    def __init__(self, parts: Mapping[str, Part], config: ModelConfig) -> None:
        self.eps, self.fc = config.rms_norm_eps, Matrix(matrix(parts, "fc"))
        self.norms = vector(parts, "pre_fc_norm_embedding"), vector(parts, "pre_fc_norm_hidden")
        self.layer = PackedLayer(within(parts, "layers.0."), config, "full_attention", sparse=True)
        self.norm = vector(parts, "norm")

    def __call__(self, hidden_TH: Tensor, step: PackedStep, cache: tuple[Tensor, Tensor] | None) -> Tensor:
        x = self._join(hidden_TH, step)
        return step.normed(self.layer(x, step, cache, None, None), self.norm, self.eps)

    def read(self, hidden_TH: Tensor, step: PackedStep, cache: tuple[Tensor, Tensor]) -> None:
        x, mixer = self._join(hidden_TH, step), self.layer.mixer
        assert isinstance(mixer, PackedAttention)
        mixer.read(step.rows(x, self.layer.norms[0], self.eps), step, cache)

    def _join(self, hidden_TH: Tensor, step: PackedStep) -> Tensor:
        tokens, width = hidden_TH.shape
        both = step.workspace.take("both", (tokens, 2 * width), torch.float32)
        step.normed(step.embedded, self.norms[0], self.eps, both[:, :width])
        step.normed(hidden_TH, self.norms[1], self.eps, both[:, width:])
        return step.product(step.rows(both), self.fc, "whole")


class PackedQwen3Next:
    """A network whose weights are `parts` (see `packed_layout`), on the CPU."""

    device, dtype = torch.device("cpu"), torch.float32
    own_threads = True  # not torch's

    def __init__(
        self,
        config: ModelConfig,
        parts: Mapping[str, Part],
        *,
        activations: Activations = "int8",
        cache_dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        assert supported(config)
        warn_of_slow_threads()
        self.config, self.cache_dtype, self.activations = config, cache_dtype, activations
        self.embedding, self.norm = vector(parts, "embed_tokens"), vector(parts, "norm")
        self.lm_head = Matrix(matrix(parts, "lm_head"))
        self.layers = [
            PackedLayer(within(parts, f"layers.{i}."), config, kind, sparse=config.is_sparse(i))
            for i, kind in enumerate(config.layer_types)
        ]
        self.mtp = PackedMTP(within(parts, "mtp."), config) if config.mtp_layers else None
        self._frequencies = torch.stack([frequencies(config, stretched=each) for each in (False, True)])
        self._scale = config.rope_scaling.scale if config.rope_scaling else 1.0
        self._workspace = Workspace()
        self.threads = min(torch.get_num_threads(), numba.get_num_threads())
        self._tapes = Tapes(self._workspace)
        self._steady = all(layer.steady for layer in (*self.layers, *([self.mtp.layer] if self.mtp else [])))

    def __call__(
        self,
        ids_T: Tensor,
        packing: Packing | None = None,
        state: State | None = None,
        routing: Routing | None = None,
    ) -> Tensor:
        """Token ids [T] -> hidden states [T, H] fp32 after the norm. Without `packing`: one sequence."""

        def trunk(step: PackedStep) -> Tensor:
            x_TH = step.embedded
            for i, layer in enumerate(self.layers):
                caches = (state.kv[i], state.conv[i], state.delta[i]) if state else (None, None, None)
                x_TH = layer(x_TH, step, *caches)
            return step.normed(x_TH, self.norm, self.config.rms_norm_eps)

        packing = packing or Packing.of([len(ids_T)])
        return self._pass("trunk", trunk, packing, state, routing, ids_T).clone()

    def logits(self, hidden_TH: Tensor) -> Tensor:
        """Hidden states [T, H] -> scores of the next token [T, V] fp32."""
        workspace, (count, columns) = self._workspace, (len(hidden_TH), self.lm_head.columns)
        coded = self.activations == "int8"
        if count > attention.SHORT or count * columns > TAPED:
            self._set_threads()
            rows = Rows(hidden_TH.contiguous(), workspace, coded)
            scores = torch.empty(count, columns)
            linear(rows.ready(self.lm_head), self.lm_head, scores)
            return scores[:, : self.config.vocab_size]

        def score() -> Tensor:
            out = workspace.take("scores", (count, columns), torch.float32)
            self._set_threads()
            return linear(Rows(rows_TH, workspace, coded).ready(self.lm_head), self.lm_head, out)

        rows_TH = self._lay("row 0", hidden_TH)
        return self._tapes.run(("logits", count), self, score)[:, : self.config.vocab_size].clone()

    def mtp_hidden(
        self,
        hidden_TH: Tensor,
        next_ids_T: Tensor,
        packing: Packing | None = None,
        cache: tuple[Tensor, Tensor] | None = None,
        routing: Routing | None = None,
        *,
        own: bool = False,
    ) -> Tensor:
        """See `Qwen3Next.mtp_hidden`."""
        mtp = self._head()
        if not self.config.mtp_normed_input:
            hidden_TH = ungained(hidden_TH, mtp.norm if own else self.norm)

        def answer(step: PackedStep, hidden_TH: Tensor) -> Tensor:
            return mtp(hidden_TH, step, cache)

        packing, owner = packing or Packing.of([len(hidden_TH)]), cache[0] if cache else None
        return self._pass("mtp", answer, packing, owner, routing, next_ids_T, hidden_TH.float()).clone()

    def mtp_read(
        self, hidden_TH: Tensor, next_ids_T: Tensor, packing: Packing, cache: tuple[Tensor, Tensor]
    ) -> None:
        """See `Qwen3Next.mtp_read`."""
        mtp = self._head()
        if not self.config.mtp_normed_input:
            hidden_TH = ungained(hidden_TH, self.norm)

        def read(step: PackedStep, hidden_TH: Tensor) -> None:
            mtp.read(hidden_TH, step, cache)

        self._pass("mtp read", read, packing, cache[0], None, next_ids_T, hidden_TH.float(), longest=READ)

    def _head(self) -> PackedMTP:
        if self.mtp is None:
            raise ValueError("this checkpoint has no MTP head: its mtp.* tensors are absent")
        return self.mtp

    def _pass(
        self,
        name: str,
        make: Callable[..., T],
        packing: Packing,
        owner: object,
        routing: Routing | None,
        ids_T: Tensor,
        *rows: Tensor,
        longest: int = attention.SHORT,
    ) -> T:
        """`make(step, *rows)`: from a tape where no piece is longer and there are caches, `owner`'s."""
        if owner is None or routing is not None or not self._steady or max(packing.lengths) > longest:
            self._set_threads()
            return make(self._begin(packing, ids_T, routing, cut=owner is not None), *rows)
        check(ids_T, len(self.embedding))
        places, ids = lay_down(packing, self._workspace), self._lay("ids", ids_T)
        rows = tuple(self._lay(f"row {i}", row) for i, row in enumerate(rows))
        sizes = (len(ids), len(packing.lengths), len(packing.saves), packing.first)
        key = (name, *sizes, places.pages.shape, places.stretched is None)

        def make_anew() -> T:
            self._set_threads()
            return make(self._begin(laid(packing, places), ids), *rows)

        return self._tapes.run(key, owner, make_anew)

    def _set_threads(self) -> None:
        if numba.get_num_threads() != self.threads:  # a setting of each thread
            numba.set_num_threads(self.threads)

    def _lay(self, name: str, rows: Tensor) -> Tensor:
        """A copy in the workspace."""
        return self._workspace.lay(name, rows.numpy())

    def _begin(
        self, packing: Packing, ids_T: Tensor, routing: Routing | None = None, *, cut: bool = False
    ) -> PackedStep:
        """The surroundings of a forward, with what it begins with."""
        workspace, stretched = self._workspace, packing.stretched
        shape = (len(ids_T), self._frequencies.shape[1])
        cos, sin = (workspace.take(each, shape, torch.float32) for each in ("cos", "sin"))
        which = None if stretched is None else stretched.long()
        kinds = self._frequencies[1:] if which is None else self._frequencies
        rotary = turn(packing.positions, which, kinds, self._scale, (cos, sin), workspace)
        out = workspace.take("whole", (len(ids_T), self.config.hidden_size), torch.float32)
        embedded = embed(ids_T, self.embedding, out, workspace)
        return PackedStep(packing, embedded, rotary, workspace, self.activations == "int8", routing, cut)
