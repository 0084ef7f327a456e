"""Both forms of the gated delta rule against its token-by-token recurrence in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qnext.kernels.reference.delta_rule import STEP_LIMIT, UnitLowerInverse, delta_chunk, gated_delta_rule
from qnext.model.packing import Packing

from .programs import DRAFTS, Layout, Move, Program, play, programs
from .twins import DeltaInputs, delta_cache, delta_recurrence, distance, paged_row, row_slots

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
    cache = delta_cache(row_slots(lengths), heads)
    state = cache.state
    state[row.slots] = torch.randn(len(lengths), *state.shape[1:], generator=torch.Generator().manual_seed(1))
    wanted, lasts = recurrence(inputs.double(), row, state[row.slots].double())
    assert distance(gated_delta_rule(*inputs, row, cache), wanted) < 3e-6
    assert distance(state[row.slots], lasts) < 3e-6
    others = sorted(set(range(len(state))) - set(row.slots.tolist()))
    assert state[others].isnan().all()  # slots of others are left as they were


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=6), st.integers(0, 99))
def test_pieces_of_any_size_give_the_whole(pieces: list[int], seed: int) -> None:
    heads = HEADS["two"]
    inputs = DeltaInputs.random(sum(pieces), heads, seed)
    wanted, last = recurrence(inputs.double(), Packing.of([sum(pieces)]), zeros(1, heads))
    cache, outs, at = delta_cache(1, heads), [], 0
    cache.state.zero_()
    for length in pieces:
        row = Packing.cached([length], [at], [[0] * 8], [0], 64)
        outs.append(gated_delta_rule(*inputs.part(at, at + length), row, cache))
        at += length
    assert distance(torch.cat(outs), wanted) < 5e-6
    assert distance(cache.state, last[:1]) < 5e-6


@pytest.mark.parametrize("chunk", [8, 16, 32, 128])
def test_the_size_of_a_chunk_does_not_matter(chunk: int) -> None:
    heads, lengths = HEADS["equal"], [70, 3, 129]
    inputs, state = DeltaInputs.random(sum(lengths), heads), torch.randn(3, 2, 8, 12)
    q, k = (x / (x.square().sum(-1, keepdim=True) + 1e-6).sqrt() for x in inputs[:2])
    order = [2, 0, 1]
    out, last, saved = delta_chunk(q / 8**0.5, k, *inputs[2:], lengths, order, state[order], chunk)
    wanted, lasts = recurrence(inputs.double(), Packing.of(lengths), state.double())
    assert distance(out, wanted) < 3e-6
    assert distance(last, lasts[order]) < 3e-6
    assert not saved


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


def check_windows(program: Program, seed: int, dtype: torch.dtype) -> None:
    """Play a program; outputs, and states in all slots, against the recurrence over what was committed."""
    heads, layout = (1, 2, 5, 4), Layout.of(program, seed)
    cache = delta_cache(layout.slot_count, heads, DRAFTS, dtype)
    wanted_states = cache.state.double()
    for slot in layout.slots.values():
        cache.state[slot] = wanted_states[slot] = 0
    pending = {n: DeltaInputs.random(0, heads) for n in layout.slots}  # accepted, but not yet in the slot
    for number, turn in enumerate(play(program, layout)):
        inputs = DeltaInputs.random(turn.packing.total, heads, seed + number)
        inputs = DeltaInputs(*(x.to(dtype) for x in inputs[:3]), *inputs[3:])
        wanted = []
        for i, (start, move, slot) in enumerate(
            zip(turn.packing.starts, turn.moves, turn.slots, strict=True)
        ):
            certain = start + move.certain
            state = wanted_states[slot]
            if len(pending[move.sequence].q):
                _, state = delta_recurrence(pending[move.sequence].double(), state)
            for t in range(start, start + move.length):
                out, state = delta_recurrence(inputs.part(t, t + 1).double(), state)
                wanted.append(out)
                for n, count, target in turn.packing.saves:
                    if n == i and count == t + 1 - start:
                        wanted_states[target] = state
                if t + 1 == certain:
                    wanted_states[slot] = state
            pending[move.sequence] = inputs.part(certain, certain + move.accepted)
        found = gated_delta_rule(*inputs, turn.packing, cache)
        assert distance(found, torch.cat(wanted), least=0.1) < 5e-6
        written = wanted_states.isfinite()
        assert cache.state.isfinite().equal(written)  # the slots of others are left as they were
        assert distance(cache.state[written], wanted_states[written]) < 5e-6
        for move, slot in zip(turn.moves, turn.slots, strict=True):
            for kept in cache[1:]:  # nobody asks for rejected drafts again
                kept[slot, move.accepted :] = float("nan")


@settings(deadline=None, max_examples=40)
@given(programs(), st.integers(0, 99), st.sampled_from([torch.float32, torch.bfloat16]))
def test_windows_of_drafts_equal_the_recurrence(program: Program, seed: int, dtype: torch.dtype) -> None:
    check_windows(program, seed, dtype)


@pytest.mark.parametrize("accepted", range(5))
@pytest.mark.parametrize("then", [1, 4, 16, 64, 130])
def test_a_piece_of_any_length_may_follow_accepted_drafts(accepted: int, then: int) -> None:
    check_windows([[Move(0, 1, 4, accepted)], [Move(0, then)], [Move(0, 1)]], 0, torch.float32)


@pytest.mark.parametrize("saves", [(1,), (69,), (64,), (30, 30), (65, 3), (3, 64, 65)], ids=str)
def test_states_are_saved_in_any_order_after_any_count(saves: tuple[int, ...]) -> None:
    check_windows([[Move(0, 1, 3, 2)], [Move(1, 9), Move(0, 70, saves=saves)]], 0, torch.float32)


@pytest.mark.parametrize("size", [15, 16, 17, 63, 64])
@pytest.mark.parametrize("accepted", [0, 2, 4])
def test_windows_about_the_size_of_a_chunk(size: int, accepted: int) -> None:
    """`size` counts the replayed tokens and the drafts too."""
    rows = [[Move(0, 1, 4, 4)], [Move(1, 1, 4, 1), Move(0, size - 8, 4, accepted)], [Move(0, 1), Move(1, 1)]]
    check_windows(rows, 0, torch.float32)


def test_drafts_that_no_chunk_can_hold_are_refused() -> None:
    """An invariant of the engine: what it drafts comes after one token, not after a long piece."""
    with pytest.raises(AssertionError, match="last chunk"):
        check_windows([[Move(0, 63, 4)]], 0, torch.float32)
