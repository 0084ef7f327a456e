"""The sparse half against the reference on the numbers that the bytes mean; tokens alone against together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qnext.kernels.cpu import experts
from qnext.kernels.cpu.experts import Experts, choose, mix
from qnext.kernels.cpu.inputs import Inputs
from qnext.kernels.cpu.workspace import Workspace
from qnext.kernels.packed import BITS, ZERO, Packed, dequantise, quantise
from qnext.kernels.reference.experts import route, swiglu

CASES = [(kind, coded) for kind in BITS for coded in ((False, True) if kind in ZERO else (False,))]


class Layer:
    """Random experts, the last one shared; `floats` are what their bytes mean."""

    def __init__(self, kind: str, count: int, hidden: int, inner: int, group: int) -> None:
        halves = torch.randn(count + 1, 2, inner // 16, 16, hidden) / hidden**0.5
        blocks = halves.transpose(1, 2).reshape(count + 1, 2 * inner, hidden)
        self.up = quantise(blocks, kind, group)
        self.down = quantise(torch.randn(count + 1, hidden, inner) / inner**0.5, kind, group)
        back = dequantise(self.up).view(count + 1, inner // 16, 2, 16, hidden).transpose(1, 2)
        self.floats = back.reshape(count + 1, 2 * inner, hidden).double(), dequantise(self.down).double()
        self.experts = Experts(
            _cut(self.up, slice(count)),
            _cut(self.down, slice(count)),
            (_cut(self.up, slice(count, None)), _cut(self.down, slice(count, None))),
        )

    def run(self, x: Tensor, scores: Tensor, residual: Tensor, top_k: int, group: int) -> Tensor:
        workspace = Workspace()
        choice = choose(scores, self.experts.count, top_k, workspace, normalise=True, shared=1)
        inputs = Inputs(x, self.up.width, group, workspace)
        return mix(inputs, choice, self.experts, residual, torch.full_like(residual, float("nan")), workspace)


def _cut(packed: Packed, which: slice) -> Packed:
    scales = packed.scales[which] if packed.scales.numel() else packed.scales
    return packed._replace(data=packed.data[which], scales=scales)


@pytest.mark.parametrize(("kind", "coded"), CASES)
@pytest.mark.parametrize("shape", [(14, 4, 128, 64, 32), (8, 2, 64, 48, 32), (6, 2, 128, 64, 64)], ids=str)
def test_mixture(kind: str, coded: bool, shape: tuple[int, ...]) -> None:
    count, top_k, hidden, inner, group = shape
    layer = Layer(kind, count, hidden, inner, group)
    for tokens in (1, 5, 17, 300):
        x, residual = torch.randn(tokens, hidden), torch.randn(tokens, hidden)
        scores = torch.randn(tokens, 16 * -(-(count + 1) // 16)) * 2
        out = layer.run(x, scores, residual, top_k, group if coded else 0)
        _, weights, chosen = route(scores[:, :count], top_k, True)
        want = residual.double()
        for e in range(count + 1):
            share = (weights * (chosen == e)).sum(-1) if e < count else scores[:, count].sigmoid()
            want = want + share[:, None].double() * swiglu(x.double(), *(each[e] for each in layer.floats))
        assert (out - want).norm() / (want - residual).norm() < (3e-2 if coded else 2e-6)
        last = slice(tokens - 1, tokens)
        alone = layer.run(x[last], scores[last], residual[last], top_k, group if coded else 0)
        assert torch.equal(alone[0], out[-1])


@pytest.mark.parametrize("wave", [1, 50, 700])
def test_many_pairs_are_rounded_wave_by_wave(wave: int, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = Layer("int4", 14, 128, 64, 32)
    x, residual, scores = torch.randn(300, 128), torch.randn(300, 128), torch.randn(300, 16) * 2
    scores[:, 5] = -100  # an expert that nobody chooses
    at_once = layer.run(x, scores, residual, 4, 32)
    monkeypatch.setattr(experts, "WAVE", wave)
    assert torch.equal(layer.run(x, scores, residual, 4, 32), at_once)


@pytest.mark.parametrize("normalise", [True, False])
def test_choice_is_the_references(normalise: bool) -> None:
    scores = torch.randn(40, 64) * 3
    choice = choose(scores, 50, 6, Workspace(), normalise=normalise, shared=0)
    _, weights, chosen = route(scores[:, :50], 6, normalise)
    assert torch.equal(choice.experts.long(), chosen)
    assert torch.allclose(choice.weights, weights, rtol=1e-5)
    for e in range(50):
        pairs = slice(choice.begins[e], choice.begins[e + 1])
        rows, places = (chosen == e).nonzero(as_tuple=True)
        assert choice.tokens[pairs].tolist() == rows.tolist()
        assert choice.shares[pairs].tolist() == choice.weights[rows, places].tolist()


def test_of_equal_scores_the_lower_number_is_chosen() -> None:
    assert choose(torch.zeros(1, 16), 10, 3, Workspace(), normalise=True, shared=0).experts.tolist() == [
        [0, 1, 2]
    ]
