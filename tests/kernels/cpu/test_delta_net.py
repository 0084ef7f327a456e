"""The delta half of a linear layer in one call against the reference's ops one after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from qnext.kernels import reference
from qnext.kernels.cpu.delta_net import DeltaNetWeights, delta_net, supported
from qnext.kernels.cpu.delta_piece import STEP_LIMIT
from qnext.kernels.cpu.unit import UNIT
from qnext.kernels.cpu.workspace import Workspace
from qnext.kernels.ops import DeltaCache
from qnext.model.packing import Arrays, Packing

from ..programs import DRAFTS, Layout, Move, Program, play, programs
from ..twins import delta_cache, distance, paged_row, row_slots

pytestmark = pytest.mark.usefixtures("poisoned_memory")

# Key heads, key width, value heads, value width, taps.
SHAPES = {
    "one": (1, 16, 1, 16, 2),
    "wide": (1, 64, 2, 128, 4),
    "odd": (2, 32, 6, 80, 5),
    "equal": (2, 16, 2, 64, 4),
}
LENGTHS = [
    (1,),
    (2, 1, 3),
    (STEP_LIMIT,),
    (STEP_LIMIT + 1, 1),
    (31, 32, 33),
    (64, 65),
    (130, 1, 7),
    (80, 200),
]
EITHER = pytest.mark.parametrize("exact", [True, False] if UNIT else [True])  # the same without a unit


@dataclass
class Layer:
    """Parameters of a layer, as they are published."""

    shape: tuple[int, int, int, int, int]
    conv1d: Tensor
    a_log: Tensor
    dt_bias: Tensor
    norm: Tensor
    eps: float = 1e-3  # much: the norm of what is nearly nothing would make much of its rounding
    exact: bool = True

    @classmethod
    def random(cls, shape: tuple[int, int, int, int, int], seed: int = 0, exact: bool = True) -> Layer:
        rng = torch.Generator().manual_seed(seed)
        channels = 2 * shape[0] * shape[1] + shape[2] * shape[3]
        return cls(
            shape,
            torch.randn(channels, shape[4], generator=rng),
            torch.rand(shape[2], generator=rng) * 4 - 3,
            torch.rand(shape[2], generator=rng) * 2 - 1,
            torch.randn(shape[3], generator=rng),
            exact=exact,
        )

    @property
    def error(self) -> float:
        """What outputs and states may be off by, as a share of the largest."""
        return 1e-5 if self.exact or not UNIT else 5e-5

    @property
    def heads(self) -> tuple[int, int, int, int]:
        return self.shape[:4]

    @property
    def channels(self) -> int:
        return self.conv1d.shape[0]

    def inputs(self, tokens: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        rng = torch.Generator().manual_seed(seed)
        width = self.channels + self.shape[2] * self.shape[3]
        return torch.randn(tokens, width, generator=rng), torch.randn(
            tokens, 2 * self.shape[2], generator=rng
        )

    def states(self, slots: int, dtype: torch.dtype) -> tuple[Tensor, DeltaCache]:
        """Caches full of NaN."""
        keys, key, values, value, _ = self.shape
        rows = self.shape[4] - 1 + DRAFTS
        conv = torch.full((slots, rows, self.channels), float("nan"), dtype=dtype)
        return conv, delta_cache(slots, (keys, values, key, value), DRAFTS, dtype)

    def fast(
        self,
        x: Tensor,
        gates: Tensor,
        row: Packing,
        conv: Tensor | None = None,
        cache: DeltaCache | None = None,
    ) -> Tensor:
        weights = DeltaNetWeights.of(self.conv1d, self.a_log, self.dt_bias, self.norm, self.eps, *self.heads)
        out = torch.empty(len(x), self.shape[2] * self.shape[3])
        return delta_net(x, gates, weights, row, conv, cache, out, Workspace(), exact=self.exact)

    def slow(
        self,
        x: Tensor,
        gates: Tensor,
        row: Packing,
        conv: Tensor | None = None,
        cache: DeltaCache | None = None,
    ) -> Tensor:
        """As `model.deltanet` does it."""
        keys, key, values, value, _ = self.shape
        qkv, z = x.split((self.channels, values * value), -1)
        b, a = gates.chunk(2, -1)
        parts = (keys * key, keys * key, values * value)
        q, k, v = reference.causal_conv(qkv, self.conv1d, row, conv).split(parts, -1)
        decay = -self.a_log.exp() * F.softplus(a + self.dt_bias)
        q, k, v = (part.reshape(len(x), -1, width) for part, width in ((q, key), (k, key), (v, value)))
        out = reference.gated_delta_rule(q, k, v, decay, b.sigmoid(), row, cache)
        return reference.gated_rms_norm(out, z.reshape(v.shape), self.norm, self.eps).flatten(1)


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("name", SHAPES)
@EITHER
def test_without_caches(name: str, lengths: tuple[int, ...], exact: bool) -> None:
    layer, row = Layer.random(SHAPES[name], exact=exact), Packing.of(lengths)
    x, gates = layer.inputs(row.total)
    assert distance(layer.fast(x, gates, row), layer.slow(x, gates, row)) < layer.error


@EITHER
def test_in_float64(exact: bool) -> None:
    """The reference's chunks too are only fp32: over a long text, the definition decides."""
    layer, row = Layer.random(SHAPES["wide"], exact=exact), Packing.of([300])
    x, gates = layer.inputs(300)
    twin = Layer(layer.shape, *(p.double() for p in (layer.conv1d, layer.a_log, layer.dt_bias, layer.norm)))
    wanted = twin.slow(x.double(), gates.double(), row)
    assert distance(layer.fast(x, gates, row), wanted) < layer.error / 2


@pytest.mark.skipif(not UNIT, reason="there is no matrix unit")
@pytest.mark.parametrize(("length", "alike"), [(31, True), (64, False)])
def test_a_unit_takes_part_in_whole_chunks_only(length: int, alike: bool) -> None:
    """What it makes differs in the last bits, and nothing else does."""
    row, made = Packing.of([length]), []
    for exact in (True, False):
        layer = Layer.random(SHAPES["wide"], exact=exact)
        made.append(layer.fast(*layer.inputs(length), row))
    assert made[0].equal(made[1]) == alike


def check_program(program: Program, seed: int, name: str, dtype: torch.dtype, exact: bool = True) -> None:
    """Play a program with both; outputs and all slots of all caches must agree after each row."""
    layer, layout = Layer.random(SHAPES[name], seed, exact), Layout.of(program, seed)
    mine, theirs = (layer.states(layout.slot_count, dtype) for _ in range(2))
    for conv, cache in (mine, theirs):
        for slot in layout.slots.values():
            cache.state[slot] = conv[slot, : layer.shape[4] - 1] = 0
    for number, turn in enumerate(play(program, layout)):
        x, gates = layer.inputs(turn.packing.total, seed + number)
        found = layer.fast(x, gates, turn.packing, mine[0], mine[1])
        wanted = layer.slow(x, gates, turn.packing, theirs[0], theirs[1])
        assert distance(found, wanted, least=0.1) < layer.error
        for move, slot in zip(turn.moves, turn.slots, strict=True):
            kept = layer.shape[4] - 1 + move.accepted
            for conv, cache in (mine, theirs):
                conv[slot, kept:] = float("nan")  # nobody asks for rejected drafts again
                for window in cache[1:]:
                    window[slot, move.accepted :] = float("nan")
        for (conv, cache), check in zip((mine, theirs), (True, False), strict=True):
            if check:
                assert_same(conv, theirs[0], 0.0)
                for field in DeltaCache._fields:
                    rough = dtype == torch.bfloat16 and field in ("k", "v")
                    assert_same(
                        getattr(cache, field), getattr(theirs[1], field), 0.01 if rough else layer.error
                    )
        for window, other in zip(mine[1][1:3], theirs[1][1:3], strict=True):
            window.copy_(other)  # a number may be rounded to either side


def assert_same(found: Tensor, wanted: Tensor, error: float) -> None:
    known = wanted.isfinite()
    assert found.isfinite().equal(known)  # what is another's is left as it was
    if known.any():
        assert distance(found[known], wanted[known]) <= error


@settings(deadline=None, max_examples=30)
@given(
    programs(),
    st.integers(0, 99),
    st.sampled_from(list(SHAPES)),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.booleans(),
)
def test_random_programs(program: Program, seed: int, name: str, dtype: torch.dtype, exact: bool) -> None:
    check_program(program, seed, name, dtype, exact)


@pytest.mark.parametrize("accepted", range(5))
@pytest.mark.parametrize("then", [1, 4, 16, 64, 130])
def test_a_piece_of_any_length_may_follow_accepted_drafts(accepted: int, then: int) -> None:
    check_program([[Move(0, 1, 4, accepted)], [Move(0, then)], [Move(0, 1)]], 0, "odd", torch.float32)


@pytest.mark.parametrize("saves", [(1,), (69,), (64,), (30, 30), (65, 3), (3, 64, 65)], ids=str)
def test_states_are_saved_in_any_order_after_any_count(saves: tuple[int, ...]) -> None:
    rows = [[Move(0, 1, 3, 2)], [Move(1, 9), Move(0, 70, saves=saves)]]
    check_program(rows, 0, "wide", torch.bfloat16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@EITHER
def test_a_sequence_alone_gives_the_same_bits(dtype: torch.dtype, exact: bool) -> None:
    layer, lengths = Layer.random(SHAPES["wide"], exact=exact), (1, 20, 1, 70, 3)
    row = paged_row(lengths, [9] * 5, 4)
    assert row.arrays.slots is not None
    together = layer.states(row_slots(lengths), dtype)
    rng = torch.Generator().manual_seed(1)
    for tensor in (together[0], *together[1]):
        tensor[:] = torch.randn(tensor.shape, generator=rng)
    alone = together[0].clone(), DeltaCache(*(tensor.clone() for tensor in together[1]))
    x, gates = layer.inputs(row.total)
    drafts, replays = (0, 2, 1, 0, 2), (1, 0, 4, 2, 0)
    whole = Packing(lengths, row.contexts, row.arrays, drafts=drafts, replays=replays)
    found = layer.fast(x, gates, whole, *together)
    for n, (start, length) in enumerate(zip(row.starts, lengths, strict=True)):
        part, slots = slice(start, start + length), row.arrays.slots[n : n + 1]
        one = Packing(
            (length,),
            (9,),
            Arrays(row.arrays.positions[part], slots=slots),
            drafts=drafts[n : n + 1],
            replays=replays[n : n + 1],
        )
        assert layer.fast(x[part], gates[part], one, *alone).equal(found[part])
    assert together[0].equal(alone[0])
    assert all(a.equal(b) for a, b in zip(together[1], alone[1], strict=True))


@pytest.mark.parametrize("strong", [-5.0, -50.0, -500.0])
@EITHER
def test_strong_decay_among_weak(strong: float, exact: bool) -> None:
    """A token that forgets everything must cost those after it no accuracy."""
    layer, row = Layer.random(SHAPES["wide"], exact=exact), Packing.of([128])
    layer.a_log[:] = 0
    x, gates = layer.inputs(128)
    gates[:, 2:] = -4.0
    gates[::7, 2:] = -strong
    assert distance(layer.fast(x, gates, row), layer.slow(x, gates, row)) < layer.error


def test_rows_may_lie_apart() -> None:
    layer, row = Layer.random(SHAPES["odd"]), Packing.of([5, 40])
    x, gates = layer.inputs(45)
    nan = float("nan")
    apart = [F.pad(tensor, (0, 7), value=nan)[:, :-7] for tensor in (x, gates)]
    assert layer.fast(*apart, row).equal(layer.fast(x, gates, row))


def test_caches_may_change_from_call_to_call() -> None:
    layer = Layer.random(SHAPES["wide"])
    weights = DeltaNetWeights.of(
        layer.conv1d, layer.a_log, layer.dt_bias, layer.norm, layer.eps, *layer.heads
    )
    row, (x, gates) = (
        Packing((1,), (9,), Arrays(np.arange(1), slots=np.zeros(1, np.int64))),
        layer.inputs(1),
    )
    caches = []
    for number, dtype in enumerate((torch.float32, torch.bfloat16)):
        conv, cache = layer.states(1 + number, dtype)
        for tensor in (conv, *cache):
            tensor[:] = number + 1
        caches.append((conv, cache))
    for conv, cache in (caches[0], caches[1], caches[1], caches[0]):
        wanted = layer.slow(x, gates, row, conv.clone(), DeltaCache(*(tensor.clone() for tensor in cache)))
        found = delta_net(x, gates, weights, row, conv, cache, torch.empty_like(wanted), exact=True)
        assert distance(found, wanted) < 1e-5
    conv, cache = caches[0]
    for bad in (cache._replace(state=cache.state.double()), cache._replace(v=cache.v.bfloat16())):
        with pytest.raises(AssertionError):
            delta_net(x, gates, weights, row, conv, bad, torch.empty_like(wanted), exact=True)
    with pytest.raises(AssertionError, match="both"):
        delta_net(x, gates, weights, row, conv, None, torch.empty_like(wanted), exact=True)
    with pytest.raises(ValueError, match="widths are no multiples of 16"):
        DeltaNetWeights.of(layer.conv1d, layer.a_log, layer.dt_bias, layer.norm, layer.eps, 1, 60, 2, 132)


Change = Callable[[Layer, Tensor, Tensor, Tensor, DeltaCache], None]


def nudge(x: Tensor) -> None:
    x.view(-1)[x.numel() // 2] += 0.1


FAULTS: dict[str, Change] = {
    "input": lambda layer, x, gates, conv, cache: nudge(x),
    "gates": lambda layer, x, gates, conv, cache: nudge(gates),
    "conv1d": lambda layer, x, gates, conv, cache: nudge(layer.conv1d),
    "A_log": lambda layer, x, gates, conv, cache: nudge(layer.a_log),
    "dt_bias": lambda layer, x, gates, conv, cache: nudge(layer.dt_bias),
    "norm": lambda layer, x, gates, conv, cache: nudge(layer.norm),
    "conv": lambda layer, x, gates, conv, cache: nudge(conv[0, :, 20]),
    "state": lambda layer, x, gates, conv, cache: nudge(cache.state),
    "k": lambda layer, x, gates, conv, cache: nudge(cache.k[0, 1]),
    "v": lambda layer, x, gates, conv, cache: nudge(cache.v[0, 1]),
    "decay": lambda layer, x, gates, conv, cache: nudge(cache.gates[0, 1, 0]),
    "beta": lambda layer, x, gates, conv, cache: nudge(cache.gates[0, 1, 1]),
}


@pytest.mark.parametrize("length", [1, 40])
@pytest.mark.parametrize("name", [None, *FAULTS])
def test_a_fault_anywhere_is_noticed(name: str | None, length: int) -> None:
    layer = Layer.random(SHAPES["equal"])
    conv, cache = layer.states(1, torch.float32)
    for tensor in (conv, *cache):
        tensor[:] = torch.rand(tensor.shape, generator=torch.Generator().manual_seed(3))
    cache.gates[:, :, 0] *= -1
    numbers = Arrays(np.arange(length), slots=np.zeros(1, np.int64))
    row = Packing((length,), (9,), numbers, replays=(2,))
    x, gates = layer.inputs(length)
    wanted = layer.slow(x, gates, row, conv.clone(), DeltaCache(*(tensor.clone() for tensor in cache)))
    if name is not None:
        FAULTS[name](layer, x, gates, conv, cache)
    found = layer.fast(x, gates, row, conv, cache)
    assert (distance(found, wanted) < 1e-5) == (name is None)


def test_what_is_not_laid_out_as_asked_is_refused() -> None:
    layer, row = Layer.random(SHAPES["one"]), Packing.of([3])
    x, gates = layer.inputs(3)
    for bad in (x.double(), x[:, :-1], x[:2], x.T.contiguous().T):
        with pytest.raises(AssertionError):
            layer.fast(bad, gates, row)
    assert supported(16, 128, 32, 128, 4)
    assert not supported(16, 128, 32, 100, 4) and not supported(2, 16, 3, 16, 4)
    assert not supported(1, 16, 1, 16, 1)
