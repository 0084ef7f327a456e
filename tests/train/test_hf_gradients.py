"""The gradients of training, every tensor: against `transformers`' own network on shared weights, and against
float64, which says who of the two is nearer.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Qwen3NextForCausalLM

from qnext.model.qwen3_next import Qwen3Next
from qnext.train import loss
from qnext.train.batch import Batch

from ..model.test_hf_equality import SHAPES, ours, theirs

LENGTHS = (1, 2, 65, 20, 130)
CHECKED = ("plain", "tied", "dense layers", "biases, one KV head", "YaRN", "irregular layers")


def documents() -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randint(0, 97, (length,), generator=rng) for length in LENGTHS]


def row(texts: list[Tensor]) -> Batch:
    """The texts in one row, every token learned but each one's first."""
    weights = torch.cat([(torch.arange(len(text)) > 0).float() for text in texts])
    return Batch(torch.cat(texts), weights, tuple(map(len, texts)))


def their_gradients(reference: Qwen3NextForCausalLM, texts: list[Tensor], path: Path) -> Qwen3Next:
    """A network of ours that has for weights what are gradients in theirs: the checkpoint maps the names."""
    for text in texts:
        if len(text) > 1:
            loss = reference(text[None], labels=text[None], output_router_logits=False).loss
            (loss * (len(text) - 1)).backward()  # theirs is a mean
    with torch.no_grad():
        for weight in reference.parameters():
            weight.copy_(torch.zeros_like(weight) if weight.grad is None else weight.grad)
    return ours(reference, path, torch.float32)


def our_gradients(model: Qwen3Next, texts: list[Tensor]) -> dict[str, Tensor]:
    found, tally = loss.total(model, row(texts), denominator=1.0, mtp_weight=0.0, router_weight=0.0)
    found.backward()
    assert tally.weight == sum(LENGTHS) - len(LENGTHS)
    return {name: gradient(weight) for name, weight in model.named_parameters()}


def gradient(weight: Tensor) -> Tensor:
    assert weight.grad is not None and weight.grad.abs().max() > 0
    return weight.grad.clone()


@pytest.mark.parametrize("shape", CHECKED)
def test_float32_gradients_are_those_of_transformers(shape: str, tmp_path: Path) -> None:
    reference, texts = theirs(SHAPES[shape]), documents()
    model = ours(reference, tmp_path / "weights", torch.float32).train().requires_grad_(True)
    found = our_gradients(model, texts)
    wanted = their_gradients(reference, texts, tmp_path / "gradients")
    for name, mine in found.items():
        other = wanted.get_parameter(name)
        # what the tokens say of a decay rate nearly cancels; the test below shows that ours are exact
        limit = 5e-3 if name.endswith(("A_log", "dt_bias")) else 1e-4
        assert (mine - other).norm() <= limit * other.norm(), name


@pytest.mark.parametrize("shape", CHECKED)
def test_float32_gradients_are_those_of_float64(
    shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same network with everything that is float32 by design in float64, one text after another."""
    texts = documents()
    model = ours(theirs(SHAPES[shape]), tmp_path, torch.float32).train().requires_grad_(True)
    found = our_gradients(model, texts)
    model.zero_grad()
    model.double()
    softmax = torch.softmax
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(torch, "softmax", lambda x, dim, dtype: softmax(x, dim))
    for text in texts:
        if len(text) > 1:
            rows = model.logits(model(text))[:-1].log_softmax(-1)
            rows.gather(1, text[1:, None]).sum().neg().backward()
    for name, weight in model.named_parameters():
        exact = gradient(weight)
        assert exact.dtype == torch.float64
        assert (found[name] - exact).norm() <= 5e-5 * exact.norm(), name
