"""Both forms of the gated delta rule against its token-by-token recurrence in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qnext.kernels.reference.delta_rule import STEP_LIMIT, UnitLowerInverse, delta_chunk, gated_delta_rule
from qnext.model.packing import Packing

from .twins import DeltaInputs, delta_recurrence, distance, paged_row, row_slots

pytestmark = pytest.mark.usefixtures("poisoned_memory")

HEADS = {"one": (1, 1, 4, 4), "equal": (2, 2, 8, 12), "two": (2, 4, 8, 6), "four": (1, 4, 5, 7)}
LENGTHS = [(1,), (2, 1, 3), (4, 5), (63,), (64,), (65,), (130, 1, 7, 64), (1, 200, 3, 4, 5, 70, 1)]


def recurrence(inputs: DeltaInputs, row: Packing, states: Tensor) -> tuple[Tensor, Tensor]:
    """The twin on every sequence of a row; `states [N, V, C, U]` before -> outputs, states after."""
    outs, lasts = [], []
    for start, length, state in zip(row.starts, row.lengths, states, strict=True):
        out, last = delta_recurrence(inputs.part(start, start + length), state)
        outs.append(out)
        lasts.append(last)
    return torch.cat(outs), torch.stack(lasts)


def zeros(count: int, heads: tuple[int, int, int, int]) -> Tensor:
    return torch.zeros(count, heads[1], heads[2], heads[3], dtype=torch.float64)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("ratio", HEADS)
def test_equals_the_recurrence(ratio: str, lengths: tuple[int, ...]) -> None:
    row, inputs = Packing.of(lengths), DeltaInputs.random(sum(lengths), HEADS[ratio])
    wanted, _ = recurrence(inputs.double(), row, zeros(len(lengths), HEADS[ratio]))
    found = gated_delta_rule(*inputs, row, None)
    assert found.dtype == torch.float32
    assert distance(found, wanted) < 3e-6


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_takes_up_and_leaves_the_states_in_their_slots(lengths: tuple[int, ...]) -> None:
    heads = HEADS["two"]
    row, inputs = paged_row(lengths, [9] * len(lengths), 4), DeltaInputs.random(sum(lengths), heads)
    assert row.slots is not None
    state = torch.full((row_slots(lengths), *zeros(1, heads).shape[1:]), float("nan"))
    state[row.slots] = torch.randn(len(lengths), *state.shape[1:], generator=torch.Generator().manual_seed(1))
    wanted, lasts = recurrence(inputs.double(), row, state[row.slots].double())
    assert distance(gated_delta_rule(*inputs, row, state), wanted) < 3e-6
    assert distance(state[row.slots], lasts) < 3e-6
    others = sorted(set(range(len(state))) - set(row.slots.tolist()))
    assert state[others].isnan().all()  # slots of others are left as they were


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=6), st.integers(0, 99))
def test_pieces_of_any_size_give_the_whole(pieces: list[int], seed: int) -> None:
    heads = HEADS["two"]
    inputs = DeltaInputs.random(sum(pieces), heads, seed)
    wanted, last = recurrence(inputs.double(), Packing.of([sum(pieces)]), zeros(1, heads))
    state, outs, at = zeros(1, heads).float(), [], 0
    for length in pieces:
        row = Packing.cached([length], [at], [[0] * 8], [0], 64)
        outs.append(gated_delta_rule(*inputs.part(at, at + length), row, state))
        at += length
    assert distance(torch.cat(outs), wanted) < 5e-6
    assert distance(state, last[:1]) < 5e-6


@pytest.mark.parametrize("chunk", [8, 16, 32, 128])
def test_the_size_of_a_chunk_does_not_matter(chunk: int) -> None:
    heads, lengths = HEADS["equal"], [70, 3, 129]
    inputs, state = DeltaInputs.random(sum(lengths), heads), torch.randn(3, 2, 8, 12)
    q, k = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in inputs[:2])
    order = [2, 0, 1]
    out, last = delta_chunk(q / 8**0.5, k, *inputs[2:], lengths, order, state[order], chunk)
    wanted, lasts = recurrence(inputs.double(), Packing.of(lengths), state.double())
    assert distance(out, wanted) < 3e-6
    assert distance(last, lasts[order]) < 3e-6


def test_the_same_key_again_and_again() -> None:
    """Full-strength corrections of one key without decay: the chunk's system is as ill-behaved as can be."""
    heads, total = (1, 2, 16, 8), 200
    inputs = DeltaInputs.random(total, heads)
    inputs = inputs._replace(
        k=inputs.k[:1].expand_as(inputs.k).contiguous(),
        g=torch.zeros(total, 2),
        beta=torch.full((total, 2), 0.9999),
    )
    wanted, _ = recurrence(inputs.double(), Packing.of([total]), zeros(1, heads))
    assert distance(gated_delta_rule(*inputs, Packing.of([total]), None), wanted) < 1e-5


def test_keys_that_flip_their_sign() -> None:
    """Alternating signs make every product of two neighbours negative: the series would grow, not cancel."""
    heads, total = (1, 1, 16, 8), 200
    inputs = DeltaInputs.random(total, heads)
    signs = torch.tensor([1.0, -1.0]).repeat(total // 2)[:, None, None]
    inputs = inputs._replace(
        k=inputs.k[:1] * signs, g=torch.full((total, 1), -1e-4), beta=torch.full((total, 1), 0.999)
    )
    wanted, _ = recurrence(inputs.double(), Packing.of([total]), zeros(1, heads))
    assert distance(gated_delta_rule(*inputs, Packing.of([total]), None), wanted) < 1e-5


@pytest.mark.parametrize("strong", [-5.0, -50.0, -500.0])
def test_strong_decay_among_weak(strong: float) -> None:
    """A token that forgets everything must cost those after it no accuracy."""
    heads, total = HEADS["two"], 128
    inputs = DeltaInputs.random(total, heads)
    decay = torch.full((total, 4), -0.01)
    decay[::7] = strong
    inputs = inputs._replace(g=decay)
    wanted, _ = recurrence(inputs.double(), Packing.of([total]), zeros(1, heads))
    assert distance(gated_delta_rule(*inputs, Packing.of([total]), None), wanted) < 3e-6


@pytest.mark.parametrize("lengths", [(3, 1), (70,), (2, 65, 5)], ids=str)
def test_gradients_equal_those_of_the_recurrence(lengths: tuple[int, ...]) -> None:
    heads, row = HEADS["two"], Packing.of(lengths)
    inputs = DeltaInputs.random(sum(lengths), heads)
    fast = [x.clone().requires_grad_() for x in inputs]
    slow = [x.double().requires_grad_() for x in inputs]
    weights = torch.randn(inputs.v.shape, generator=torch.Generator().manual_seed(3))
    (gated_delta_rule(*fast, row, None) * weights).sum().backward()
    out, _ = recurrence(DeltaInputs(*slow), row, zeros(len(lengths), heads))
    (out * weights).sum().backward()
    for name, a, b in zip(DeltaInputs._fields, fast, slow, strict=True):
        assert a.grad is not None and b.grad is not None
        assert distance(a.grad, b.grad) < 1e-5, name


@pytest.mark.parametrize("length", [STEP_LIMIT, STEP_LIMIT + 1])
def test_half_precision_inputs_are_computed_in_single(length: int) -> None:
    inputs = DeltaInputs.random(length, HEADS["two"])
    inputs = inputs._replace(q=inputs.q.bfloat16(), k=inputs.k.bfloat16(), v=inputs.v.bfloat16())
    row = Packing.of([length])
    wanted = gated_delta_rule(*(x.float() for x in inputs), row, None)
    assert gated_delta_rule(*inputs, row, None).equal(wanted)
    with torch.autocast("cpu", torch.bfloat16):
        assert gated_delta_rule(*inputs, row, None).equal(wanted)


@pytest.mark.parametrize("size", [8, 16, 64])
@pytest.mark.parametrize("spread", [0.0, 0.3, 1.0])
def test_inverse_of_a_unit_triangle(size: int, spread: float) -> None:
    rng = torch.Generator().manual_seed(0)
    a = (torch.randn(2, 3, size, size, generator=rng, dtype=torch.float64) * spread + (spread == 0)).tril(-1)
    eye = torch.eye(size, dtype=torch.float64)
    found = UnitLowerInverse.apply(a)
    assert distance(found @ (eye + a), eye.expand_as(a)) < 1e-6
    assert found.triu(1).count_nonzero() == 0


def test_gradient_of_the_inverse() -> None:
    a = torch.randn(2, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 0.3
    a.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: UnitLowerInverse.apply(x.tril(-1)), (a,))
