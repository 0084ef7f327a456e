"""The network: one forward over one flat row of tokens, for training, prefill and decode alike.

Used by `engine/runner` and `train/trainer`. Invariant: it owns weights only; caches come from outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qnext.kernels.ops import Ops
from qnext.kernels.select import backend

from .checkpoint import Checkpoint
from .config import ModelConfig
from .decoder import DecoderLayer
from .initialise import initialise
from .layers import RMSNorm, RoutingSink, Step
from .mtp import MTPHead, ungained
from .packed_file import is_packed, open_packed
from .packing import Packing
from .quant import Parts, unpack_model
from .rotary import rotary_table
from .state import State
from .weights import Progress, load_weights, save_checkpoint


class Qwen3Next(nn.Module):
    """Qwen3-Next with freshly initialised weights; `from_pretrained` reads a checkpoint instead."""

    own_threads = False

    def __init__(
        self,
        config: ModelConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        with torch.device("meta"):
            self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
            self.layers = nn.ModuleList(
                DecoderLayer(config, kind, sparse=config.is_sparse(i))
                for i, kind in enumerate(config.layer_types)
            )
            self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
            self.lm_head = (
                None
                if config.tie_word_embeddings
                else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
            )
            self.mtp = MTPHead(config) if config.mtp_layers else None
        self.to(dtype or torch.float32)
        if str(device) != "meta":
            self.to_empty(device=device or "cpu")
            initialise(self, config)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
    ) -> Qwen3Next:
        """Read a checkpoint directory in the published layout, or a packed one, whose numbers are then made
        floats. `dtype` None keeps the checkpoint's own; `progress` is told bytes read and bytes in all.

        Raises ValueError naming the file, the tensor or the field that is wrong.
        """
        if is_packed(path):
            packed = open_packed(path)
            own: torch.dtype = getattr(torch, packed.config.dtype)
            return cls.from_packed(packed.config, packed.parts, dtype=dtype or own, device=device)
        checkpoint = Checkpoint(path)
        config = ModelConfig.from_dict(checkpoint.config_dict, mtp_layers=checkpoint.mtp_layers)
        model = cls(config, device="meta", dtype=dtype or checkpoint.dtype)
        checkpoint.check(config)
        model.to_empty(device=device)
        load_weights(model, checkpoint, progress)
        return model.eval().requires_grad_(False)

    @classmethod
    def from_packed(
        cls,
        config: ModelConfig,
        packed: Parts,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
    ) -> Qwen3Next:
        """The float model that a packed one stands for, exactly so in float32 (the default)."""
        model = cls(replace(config, tie_word_embeddings=False), device="meta", dtype=dtype)
        model.to_empty(device=device)
        unpack_model(packed, model)
        return model.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and hidden states."""
        return self.embed_tokens.weight.dtype

    @property
    def cache_dtype(self) -> torch.dtype:
        """Of keys and values."""
        return self.dtype

    def save_pretrained(self, path: str | Path, *, source: str | Path | None = None) -> None:
        """Write the published layout; tokenizer and generation files are copied from `source`, if given."""
        save_checkpoint(self, path, source=source)

    def forward(
        self,
        ids_T: Tensor,
        packing: Packing | None = None,
        state: State | None = None,
        routing: RoutingSink | None = None,
        *,
        ops: Sequence[Ops] | None = None,
    ) -> Tensor:
        """Token ids [T] -> hidden states [T, H] after the final norm. Without `packing`: one sequence.
        `ops`: others than the device's, a layer each."""
        packing = packing or Packing.of([ids_T.shape[0]], device=ids_T.device)
        step = self._step(packing, routing)
        x: Tensor = self.embed_tokens(ids_T)
        for i, layer in enumerate(self.layers):
            caches = (state.kv[i], state.conv[i], state.delta[i]) if state else (None, None, None)
            x = layer(x, replace(step, ops=ops[i]) if ops else step, *caches)
        hidden: Tensor = self.norm(x, step.ops)
        return hidden

    def logits(self, hidden_TH: Tensor) -> Tensor:
        """Hidden states [T, H] -> scores of the next token [T, V]."""
        return F.linear(hidden_TH, (self.lm_head or self.embed_tokens).weight)

    def mtp_hidden(
        self,
        hidden_TH: Tensor,
        next_ids_T: Tensor,
        packing: Packing | None = None,
        cache: tuple[Tensor, Tensor] | None = None,
        routing: RoutingSink | None = None,
        *,
        own: bool = False,
        ops: Ops | None = None,
    ) -> Tensor:
        """Hidden states and the token that follows each -> hidden states of the token after that [T, H].
        `own`: the states are the head's own of before, not the trunk's. `ops`: others than the device's."""
        mtp = self._head()
        packing = packing or Packing.of([hidden_TH.shape[0]], device=hidden_TH.device)
        if not self.config.mtp_normed_input:
            hidden_TH = ungained(hidden_TH, (mtp.norm if own else self.norm).weight)
        step = self._step(packing, routing, ops)
        out: Tensor = mtp(hidden_TH, self.embed_tokens(next_ids_T), step, cache)
        return out

    def mtp_read(
        self, hidden_TH: Tensor, next_ids_T: Tensor, packing: Packing, cache: tuple[Tensor, Tensor]
    ) -> None:
        """Leave in the cache what `mtp_hidden` would, where what it returns is not wanted: much less work."""
        mtp = self._head()
        if not self.config.mtp_normed_input:
            hidden_TH = ungained(hidden_TH, self.norm.weight)
        mtp.read(hidden_TH, self.embed_tokens(next_ids_T), self._step(packing, None), cache)

    def _head(self) -> MTPHead:
        if self.mtp is None:
            raise ValueError("this checkpoint has no MTP head: its mtp.* tensors are absent")
        return self.mtp

    def _step(self, packing: Packing, routing: RoutingSink | None, ops: Ops | None = None) -> Step:
        positions = packing.positions
        tables = rotary_table(self.config, positions, packing.stretched)
        return Step(packing, tables, ops or backend(positions.device.type), routing)
