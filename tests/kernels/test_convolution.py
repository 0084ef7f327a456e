"""The short causal convolution against a loop over its taps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qnext.kernels.reference import causal_conv
from qnext.model.packing import Packing

from .programs import DRAFTS, Layout, Move, Program, play, programs
from .twins import convolution, distance, paged_row, row_slots

pytestmark = pytest.mark.usefixtures("poisoned_memory")

CHANNELS = 6
LENGTHS = [(1,), (2, 1, 3), (70,), (1, 1, 9, 2, 30)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def naive(x: Tensor, weight: Tensor, row: Packing, before: Tensor) -> tuple[Tensor, Tensor]:
    """The twin on every sequence of a row, in float64."""
    pairs = [
        convolution(tokens.double(), weight.double(), past.double())
        for tokens, past in zip(x.split(row.lengths), before, strict=True)
    ]
    return torch.cat([out for out, _ in pairs]), torch.stack([last for _, last in pairs])


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("width", [1, 2, 4, 5])
def test_equals_the_loop(width: int, lengths: tuple[int, ...]) -> None:
    row, x, weight = Packing.of(lengths), random(sum(lengths), CHANNELS), random(CHANNELS, width, seed=1)
    wanted, _ = naive(x, weight, row, torch.zeros(len(lengths), width - 1, CHANNELS))
    assert distance(causal_conv(x, weight, row, None), wanted) < 1e-6


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("width", [1, 2, 4, 5])
def test_takes_up_and_leaves_the_last_inputs(width: int, lengths: tuple[int, ...]) -> None:
    row = paged_row(lengths, [5] * len(lengths), 4)
    x, weight = random(sum(lengths), CHANNELS), random(CHANNELS, width, seed=1)
    state = torch.full((row_slots(lengths), width - 1, CHANNELS), float("nan"))
    assert row.slots is not None
    state[row.slots] = random(len(lengths), width - 1, CHANNELS, seed=2)
    wanted, lasts = naive(x, weight, row, state[row.slots])
    assert distance(causal_conv(x, weight, row, state), wanted) < 1e-6
    assert state[row.slots].equal(lasts.float())
    others = sorted(set(range(len(state))) - set(row.slots.tolist()))
    assert state[others].isnan().all()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8))
def test_pieces_of_any_size_give_the_whole(pieces: list[int]) -> None:
    x, weight = random(sum(pieces), CHANNELS), random(CHANNELS, 4, seed=1)
    whole = causal_conv(x, weight, Packing.of([sum(pieces)]), None)
    state, outs, at = torch.zeros(1, 3, CHANNELS), [], 0
    for length in pieces:
        row = Packing.cached([length], [at], [[0]], [0], 128)
        outs.append(causal_conv(x[at : at + length], weight, row, state))
        at += length
    assert distance(torch.cat(outs), whole) < 1e-6


def test_gradients_equal_those_of_the_loop() -> None:
    lengths = (3, 1, 12)
    x, weight = random(16, CHANNELS).requires_grad_(), random(CHANNELS, 4, seed=1).requires_grad_()
    x64, weight64 = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    scale = random(16, CHANNELS, seed=3)
    (causal_conv(x, weight, Packing.of(lengths), None) * scale).sum().backward()
    out, _ = naive(x64, weight64, Packing.of(lengths), torch.zeros(3, 3, CHANNELS))
    (out * scale).sum().backward()
    for a, b in ((x, x64), (weight, weight64)):
        assert a.grad is not None and b.grad is not None
        assert distance(a.grad, b.grad) < 1e-6


def test_half_precision_is_rounded_once() -> None:
    x, weight = random(20, CHANNELS).bfloat16(), random(CHANNELS, 4, seed=1).bfloat16()
    row, state = paged_row([20], [1], 4), torch.zeros(row_slots([20]), 3, CHANNELS, dtype=torch.bfloat16)
    found = causal_conv(x, weight, row, state)
    assert found.dtype == state.dtype == torch.bfloat16
    assert found.equal(causal_conv(x.float(), weight.float(), Packing.of([20]), None).bfloat16())
    assert row.slots is not None
    assert state[row.slots[0]].equal(x[-3:])


def check_windows(program: Program, seed: int, width: int) -> None:
    """Play a program; outputs, and columns in all slots, against the loop over what was committed."""
    layout, past, weight = Layout.of(program, seed), width - 1, random(CHANNELS, width, seed=1)
    state = torch.full((layout.slot_count, past + DRAFTS, CHANNELS), float("nan"))
    certain = state[:, :past].clone()  # what the slots should hold
    for slot in layout.slots.values():
        state[slot, :past] = certain[slot] = 0
    histories = {n: torch.zeros(past, CHANNELS) for n in layout.slots}
    for number, turn in enumerate(play(program, layout)):
        row, x = turn.packing, random(turn.packing.total, CHANNELS, seed=seed + number + 2)
        wanted = []
        for tokens, move, slot in zip(x.split(row.lengths), turn.moves, turn.slots, strict=True):
            before = histories[move.sequence]
            wanted.append(convolution(tokens.double(), weight.double(), before.double())[0])
            history = torch.cat((before, tokens))
            certain[slot] = history[move.certain : move.certain + past]
            kept = move.certain + move.accepted
            histories[move.sequence] = history[kept : kept + past]
            for n, count, target in row.saves:
                if turn.moves[n] is move:
                    certain[target] = history[count : count + past]
        others, drafted = sorted({*range(layout.slot_count)} - {*turn.slots}), state[:, past:].clone()
        found = causal_conv(x, weight, row, state)
        assert distance(found, torch.cat(wanted)) < 1e-6
        torch.testing.assert_close(state[:, :past], certain, rtol=0, atol=0, equal_nan=True)
        torch.testing.assert_close(state[others, past:], drafted[others], rtol=0, atol=0, equal_nan=True)
        for move, slot in zip(turn.moves, turn.slots, strict=True):
            state[slot, past + move.accepted :] = float("nan")  # nobody asks for rejected drafts again


@settings(deadline=None, max_examples=40)
@given(programs(), st.integers(0, 99), st.sampled_from([1, 2, 4, 5]))
def test_windows_of_drafts_equal_the_loop(program: Program, seed: int, width: int) -> None:
    check_windows(program, seed, width)


@pytest.mark.parametrize("accepted", range(5))
@pytest.mark.parametrize("then", [1, 2, 4, 130])
def test_a_piece_of_any_length_may_follow_accepted_drafts(accepted: int, then: int) -> None:
    check_windows([[Move(0, 1, 4, accepted)], [Move(0, then)], [Move(0, 1, 2, 1)], [Move(0, 1)]], 0, 4)
