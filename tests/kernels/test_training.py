"""The ops of training, outputs and gradients, against the reference ops in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from qnext.kernels import reference, training
from qnext.kernels.ops import DeltaCache
from qnext.model.packing import Packing

from .twins import DeltaInputs, distance

pytestmark = pytest.mark.usefixtures("poisoned_memory")

DTYPES = [torch.float32, torch.bfloat16]
LENGTHS = (1, 70, 2, 64, 130, 3, 200, 5)
T = sum(LENGTHS)
ROW = Packing.of(LENGTHS)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def check(
    name: str, call: Callable[[Any, list[Tensor]], Tensor], inputs: list[Tensor], limits: tuple[float, float]
) -> None:
    """`call` with an op and its inputs, by both; `limits` of the distance in fp32 and in bf16."""
    limit = limits[any(x.dtype == torch.bfloat16 for x in inputs)]
    found = learned(call, getattr(training, name), [x.clone().requires_grad_() for x in inputs])
    wanted = learned(call, getattr(reference, name), [x.double().requires_grad_() for x in inputs])
    for i, (mine, exact) in enumerate(zip(found, wanted, strict=True)):
        assert distance(mine, exact) < limit, i
    for mine, given in zip(found[1:], inputs, strict=True):
        assert mine.dtype == given.dtype


def learned(call: Callable[[Any, list[Tensor]], Tensor], op: Any, inputs: list[Tensor]) -> list[Tensor]:
    out = call(op, inputs)
    # a gradient that is a view, as autograd may give one
    grad = random(*out.shape[::-1], seed=9).to(out.dtype).permute(*reversed(range(out.ndim)))
    return [out.detach(), *torch.autograd.grad(out, inputs, grad)]


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the reference makes fp32 by design is float64 where float64 comes in."""
    single = torch.Tensor.float
    monkeypatch.setattr(torch.Tensor, "float", lambda x: x if x.dtype == torch.float64 else single(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(9, 24), (5, 3, 7), (3, 256)])
def test_norms(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = random(*shape).to(dtype) * 3, random(shape[-1], seed=1)
    check("rms_norm", lambda op, x: op(x[0], x[1], 1e-5), [x, weight], (2e-6, 1e-2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads,width", [(1, 5), (4, 16)])
def test_gated_norms_with_the_gate_inside_a_wider_row(heads: int, width: int, dtype: torch.dtype) -> None:
    x, wide, weight = (
        random(7, heads, width),
        random(7, 3 + heads * width, seed=1).to(dtype),
        random(width, seed=2),
    )
    check(
        "gated_rms_norm",
        lambda op, x: op(x[0], x[1][:, 3:].view(7, heads, width), x[2], 1e-5),
        [x, wide, weight],
        (2e-6, 1e-2),
    )


def test_a_norm_is_rounded_for_the_products_that_read_it() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found = training.rms_norm(random(3, 8), random(8, seed=1), 1e-6)
    assert found.equal(training.rms_norm(random(3, 8), random(8, seed=1), 1e-6).bfloat16())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [2, 4])
def test_convolution(width: int, dtype: torch.dtype) -> None:
    x, weight = random(T, 20).to(dtype), random(13, width, seed=1)
    check("causal_conv", lambda op, x: op(x[0][:, 3:16], x[1], ROW, None), [x, weight], (2e-6, 1e-2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [(1, 1, 8, 8), (2, 4, 16, 16), (1, 3, 12, 5)])
def test_delta_rule(heads: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    given = DeltaInputs.random(T, heads)
    inputs = [*(x.to(dtype) for x in given[:3]), *given[3:]]
    check("gated_delta_rule", lambda op, x: op(*x, ROW, None), inputs, (5e-6, 2.5e-2))


def test_delta_rule_of_keys_that_repeat() -> None:
    """The system of a chunk is then far from the identity, and a series of its powers would overflow."""
    given = DeltaInputs.random(T, (1, 2, 8, 8))
    inputs = [given.q, 1 + given.k * 0.1, given.v, given.g * 1e-3, 0.9 + 0.1 * given.beta]
    check("gated_delta_rule", lambda op, x: op(*x, ROW, None), inputs, (1e-4, 0))


def test_delta_rule_of_tokens_that_forget_everything() -> None:
    given = DeltaInputs.random(T, (1, 2, 8, 8))
    decay = torch.where(random(T, 2, seed=3) > 1, -1e4, given.g)
    check("gated_delta_rule", lambda op, x: op(*x, ROW, None), [*given[:3], decay, given.beta], (5e-6, 0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("heads", [(2, 2), (4, 1), (4, 2)])
def test_attention(heads: tuple[int, int], dtype: torch.dtype) -> None:
    inputs = [random(T, count, 12, seed=i).to(dtype) * 2 for i, count in enumerate((*heads, heads[1]))]
    check("attention", lambda op, x: op(*x, ROW, None, 0.3), inputs, (5e-6, 2.5e-2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens,top_k", [(1, 1), (150, 3)])
def test_experts(tokens: int, top_k: int, dtype: torch.dtype) -> None:
    _, weights, chosen = reference.route(random(tokens, 6, seed=4), top_k, True)
    chosen = chosen.where(chosen != 3, 5)  # an expert without tokens
    inputs = [
        random(tokens, 10).to(dtype),
        weights,
        *(x.to(dtype) for x in (random(6, 14, 10), random(6, 10, 7))),
    ]
    check("experts", lambda op, x: op(x[0], x[1], chosen, *x[2:]), inputs, (5e-6, 2.5e-2))


@pytest.mark.parametrize("dtype", DTYPES)
def test_swiglu(dtype: torch.dtype) -> None:
    inputs = [x.to(dtype) for x in (random(9, 10), random(14, 10, seed=1), random(10, 7, seed=2))]
    check("swiglu", lambda op, x: op(*x), inputs, (5e-6, 2.5e-2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("z_weight", [0.0, 0.3])
def test_cross_entropy(z_weight: float, dtype: torch.dtype) -> None:
    logits = random(6, 50).to(dtype) * 5
    logits[2, 7] = logits[2, 9] = 30  # two at the top
    targets, weights = torch.tensor([0, 49, 9, 3, 3, 20]), torch.tensor([1.0, 0.5, 2.0, 0.0, 1.0, 1.0])
    mine, exact = logits.clone(), logits.double()
    found = training.cross_entropy(mine, targets, weights, z_weight)
    losses, squares, top = reference.cross_entropy(exact, targets, weights, z_weight)
    assert distance(found[0], losses) < 1e-6 and distance(found[1], squares) < 1e-6
    assert logits.gather(1, found[2][:, None]).equal(logits.gather(1, top[:, None]))
    assert distance(mine, exact) < (1e-6 if dtype == torch.float32 else 5e-3)
    asked = logits.double().requires_grad_()
    log_sums = asked.logsumexp(1)
    loss = log_sums - asked.gather(1, targets[:, None])[:, 0] + z_weight * log_sums.square()
    (loss * weights).sum().backward()
    assert asked.grad is not None and distance(exact, asked.grad) < 1e-12


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_no_number_stays_none(dtype: torch.dtype) -> None:
    bad = random(70, 1, 8).to(dtype)
    bad[40, 0, 3] = float("nan")
    good, row = random(70, 1, 8, seed=1).to(dtype), Packing.of([70])
    gates = torch.zeros(70, 1)
    for found in (
        training.rms_norm(bad, torch.zeros(8), 1e-6),
        training.gated_rms_norm(bad, good, torch.ones(8), 1e-6),
        training.causal_conv(bad[:, 0], random(8, 4), row, None),
        training.attention(bad, good, good, row, None, 0.3),
        training.gated_delta_rule(bad, good, good, gates, gates + 0.5, row, None),
        training.cross_entropy(bad[:, 0].clone(), torch.zeros(70, dtype=torch.long), torch.ones(70), 0.0)[0],
    ):
        assert found[40].isnan().any() and not found[:40].isnan().any()


def test_caches_go_to_the_reference() -> None:
    row = Packing.cached([3], [0], [[0]], [0], 4)
    q, k, v = (random(3, 1, 8, seed=i) for i in range(3))
    mine, other = ((torch.zeros(1, 4, 1, 8), torch.zeros(1, 4, 1, 8)) for _ in range(2))
    assert training.attention(q, k, v, row, mine, 0.3).equal(reference.attention(q, k, v, row, other, 0.3))
    assert mine[0].equal(other[0])
    states = [
        DeltaCache(torch.zeros(1, 1, 8, 8), *(torch.zeros(1, 0, *n) for n in ((1, 8), (1, 8), (2, 1))))
        for _ in range(2)
    ]
    gates = -torch.ones(3, 1)
    found = training.gated_delta_rule(q, k, v, gates, -gates, row, states[0])
    assert found.equal(reference.gated_delta_rule(q, k, v, gates, -gates, row, states[1]))
    assert states[0].state.equal(states[1].state) and states[0].state.count_nonzero()
