"""Calibration: what an error in each column of each matrix costs, measured on text.

Made by `conversion` for one pass through a model, layer by layer: each layer runs in floats on what the one
before gave, and the squares of what its matrices are given are added up. Invariant: only one layer's weights
are needed at a time, and the hidden states of the text are all that is kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qnext.kernels import reference
from qnext.kernels.ops import Ops

from .config import ModelConfig
from .decoder import DecoderLayer
from .layers import Step
from .mtp import MTPHead
from .packed_layout import Part
from .packing import Packing
from .rotary import rotary_table

# An expert that few tokens chose is judged as if that many more had come, with the usual input.
PRIOR = 32.0
FLOOR = 0.01  # of the mean: no column is free

# of each matrix: its inputs squared [M, K], the squared weights of the tokens [M], how many they were [M]
Sums = tuple[Tensor, Tensor, Tensor]


class Calibration:
    """The text on its way through the layers. `importance` is to be called for every section, in order."""

    def __init__(self, config: ModelConfig, texts: Sequence[Sequence[int]], dtype: torch.dtype) -> None:
        """`texts` are token ids; `dtype` is what to reckon in. Raises ValueError for ids out of range."""
        ids = torch.tensor([token for text in texts for token in text], dtype=torch.long)
        if len(ids) < 2 or int(ids.max()) >= config.vocab_size or int(ids.min()) < 0:
            raise ValueError(f"calibration text is {len(ids)} tokens: give some, of this model's vocabulary")
        self._config, self._dtype, self._ids = config, dtype, ids
        packing = Packing.of([len(text) for text in texts if len(text)])
        self._step = Step(packing, rotary_table(config, packing.positions), cast(Ops, reference))
        self._next: Tensor | None = None  # the embedding of each token's successor, for the MTP head
        self._x: Tensor | None = None

    @torch.no_grad()
    def importance(self, parts: Sequence[Part], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """[M, K] for the packed parts of one section, whose `parameters` are those given; means are 1."""
        parameters = {name: weight.to(self._dtype) for name, weight in parameters.items()}
        section = parts[0].section
        if parts[0].form == "table":
            table = parameters[parts[0].sources[0]]
            self._x, self._next = table[self._ids], table[self._ids.roll(-1)]
            return {}
        assert self._x is not None and self._next is not None, "sections out of order"
        if section == "":
            norm = next(part for part in parts if part.name == "norm")
            self._x = reference.rms_norm(self._x, parameters[norm.sources[0]], self._config.rms_norm_eps)
            return {part.name: _finish(_squares(self._x)) for part in parts if part.packed}
        with torch.device("meta"):
            module = self._module(section)
        own = {name.removeprefix(f"{section}."): weight for name, weight in parameters.items()}
        module.load_state_dict(own, assign=True)
        watch = _Watch(module, section, parts)
        step = Step(self._step.packing, self._step.rotary, cast(Ops, watch))
        if isinstance(module, MTPHead):
            module(self._x, self._next, step, None)
        else:
            self._x = module(self._x, step, None, None, None)
        return watch.finished()

    def _module(self, section: str) -> nn.Module:
        if section == "mtp":
            return MTPHead(self._config)
        index = int(section.split(".")[1])
        kind = self._config.layer_types[index]
        return DecoderLayer(self._config, kind, sparse=self._config.is_sparse(index))


class _Watch:
    """Watches a module and adds up what its packed parts are given.

    It stands in for the ops, since what stands between two matrices of an expert is seen only there.
    """

    def __init__(self, module: nn.Module, section: str, parts: Sequence[Part]) -> None:
        self._found: dict[str, Sums] = {}
        names = {part.sources[0].removeprefix(f"{section}."): part.name for part in parts if part.packed}
        self._names = {id(p): names[name] for name, p in module.named_parameters() if name in names}
        for each in module.modules():
            if isinstance(each, nn.Linear) and id(each.weight) in self._names:
                each.register_forward_pre_hook(lambda linear, given: self._add(linear.weight, given[0]))

    def __getattr__(self, name: str) -> Any:
        return getattr(reference, name)

    def _add(self, weight: Tensor, x: Tensor) -> None:
        self._found[self._names[id(weight)]] = _squares(x)

    def swiglu(self, x_TH: Tensor, gate_up_2IH: Tensor, down_HI: Tensor) -> Tensor:
        self._add(gate_up_2IH, x_TH)
        gate, up = F.linear(x_TH, gate_up_2IH).chunk(2, -1)
        inner = F.silu(gate) * up
        self._add(down_HI, inner)
        return F.linear(inner, down_HI)

    def experts(
        self, x_TH: Tensor, weights_Tk: Tensor, chosen_Tk: Tensor, gate_up_E2IH: Tensor, down_EHI: Tensor
    ) -> Tensor:
        """A token counts by the square of the weight with which its expert's answer is added."""
        out = torch.zeros(x_TH.shape, dtype=torch.float32)
        found = []
        for expert, (gate_up, down) in enumerate(zip(gate_up_E2IH, down_EHI, strict=True)):
            tokens, picks = (chosen_Tk == expert).nonzero(as_tuple=True)
            x, weight = x_TH[tokens], weights_Tk[tokens, picks].float()[:, None]
            gate, up = F.linear(x, gate_up).chunk(2, -1)
            inner = F.silu(gate) * up
            found.append((_squares(x, weight), _squares(inner, weight)))
            out.index_add_(0, tokens, F.linear(inner, down).float() * weight)
        for parameter, each in zip((gate_up_E2IH, down_EHI), zip(*found, strict=True), strict=True):
            sums, weights, counts = (torch.cat(some) for some in zip(*each, strict=True))
            self._found[self._names[id(parameter)]] = sums, weights, counts
        return out.to(x_TH.dtype)

    def finished(self) -> dict[str, Tensor]:
        return {name: _finish(found, name.endswith("down_proj")) for name, found in self._found.items()}


def _squares(x_TK: Tensor, weight_T1: Tensor | None = None) -> Sums:
    weights = torch.ones(len(x_TK), 1) if weight_T1 is None else weight_T1
    weighed, count = x_TK.float() * weights, torch.tensor([float(len(x_TK))])
    return weighed.square().sum(0, keepdim=True), weights.square().sum()[None], count


def _finish(found: Sums, own_columns: bool = False) -> Tensor:
    """Mean squares, each matrix's own, drawn to the mean of all where few tokens were seen (or, where the
    columns of two matrices have nothing in common, to one number)."""
    sums, weights, counts = found
    if len(sums) > 1:
        usual = sums.sum(0, keepdim=True) / weights.sum()
        prior = PRIOR * weights.sum() / counts.sum()
        sums = sums + prior * (usual.mean() if own_columns else usual)
        weights = weights + prior
    means = sums / weights[:, None]
    return (means / means.mean(-1, keepdim=True).clamp(min=1e-30) + FLOOR).contiguous()
