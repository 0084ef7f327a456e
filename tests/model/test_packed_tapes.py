"""Steps from tapes are the steps they were taken from: to the bit, in what they return and leave behind."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest
import torch

from qnext.kernels.cpu import tape
from qnext.model.packed_network import READ, PackedQwen3Next
from qnext.model.packing import Packing
from qnext.model.state import State

from .packed_tiny import packed_tiny
from .tiny import token_ids

SEQUENCES, DRAFTS, PAGE, PAGES = 3, 3, 4, 150


def state_of(network: PackedQwen3Next) -> State:
    return State.allocate(
        network.config, pages=SEQUENCES * PAGES, page_size=PAGE, slots=2 * SEQUENCES, dtype=torch.bfloat16,
        kept=torch.float32, drafts=DRAFTS, mtp=True,
    )  # fmt: skip


def all_of(state: State) -> list[torch.Tensor]:
    return [state.pages, *state.slotted]


class Walk:
    """Sequences that go on by a random number of tokens each, some guessed, some of the guesses accepted."""

    def __init__(self, seed: int) -> None:
        self.dice, self.contexts, self.guessed = Random(seed), [0] * SEQUENCES, [0] * SEQUENCES

    def step(self, longest: int) -> tuple[torch.Tensor, Packing]:
        dice = self.dice
        some = sorted(dice.sample(range(SEQUENCES), dice.randint(1, SEQUENCES)))
        replays = [dice.randint(0, self.guessed[n]) for n in some]
        contexts = [self.contexts[n] + replay for n, replay in zip(some, replays, strict=True)]
        lengths = [dice.randint(1, longest) for _ in some]
        drafts = [dice.randint(0, min(DRAFTS, length - 1)) for length in lengths]
        saves = [
            (i, dice.randint(1, length - drafts[i]), SEQUENCES + n)
            for i, (n, length) in enumerate(zip(some, lengths, strict=True))
            if dice.random() < 0.2
        ]
        for n, context, length, count in zip(some, contexts, lengths, drafts, strict=True):
            self.contexts[n], self.guessed[n] = context + length - count, count
        pages = [list(range(n * PAGES, (n + 1) * PAGES))[: -(-(c + m) // PAGE)]
                 for n, c, m in zip(some, contexts, lengths, strict=True)]  # fmt: skip
        packing = Packing.cached(
            lengths, contexts, pages, some, PAGE, drafts=drafts, replays=replays, saves=saves
        )
        return token_ids(sum(lengths), seed=dice.randrange(10**6)), packing


@torch.inference_mode()
@pytest.mark.parametrize("kind, activations", [("int4", "int8"), ("bfloat16", "exact")])
def test_a_walk_is_the_same_with_tapes_and_without(
    kind: str, activations: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[object] = []
    run = tape.Tapes.run

    def counted(tapes: tape.Tapes, key: Any, owner: object, make_pass: Any) -> Any:
        passes.append(None)
        return run(tapes, key, owner, lambda: (passes.pop(), make_pass())[1])

    monkeypatch.setattr(tape.Tapes, "run", counted)
    taped, plain = (packed_tiny(kind, activations) for _ in range(2))
    plain._steady = False
    states = state_of(taped), state_of(plain)
    walk = Walk(3)
    for number in range(90):
        ids, packing = walk.step(2 if number % 3 else 12)  # long pieces between, which move the workspace
        hidden, wanted = taped(ids, packing, states[0]), plain(ids, packing, states[1])
        assert torch.equal(hidden, wanted), number
        heads = []
        for network, state in zip((taped, plain), states, strict=True):
            lengths, contexts = packing.lengths, [c + 1 for c in packing.contexts]
            assert packing.slots is not None and state.mtp is not None
            pages = [range(n * PAGES, (n + 1) * PAGES) for n in packing.slots.tolist()]
            head = Packing.cached(lengths, contexts, pages, packing.slots.tolist(), PAGE, first=1)
            network.mtp_read(wanted, ids, head, state.mtp)
            heads.append(network.mtp_hidden(wanted, ids, head, state.mtp, own=number % 2 == 0))
        assert torch.equal(*heads), number
        assert all(torch.equal(*pair) for pair in zip(*map(all_of, states), strict=True)), number
    assert len(passes) > 60  # that were not made, but played


@torch.inference_mode()
def test_a_tape_is_about_one_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another engine's caches, at the same place in memory or not, get what they would have got."""
    network = packed_tiny("int8", "int8")
    packing = Packing.cached([1], [0], [[0]], [0], PAGE)
    first = [network(token_ids(1, seed=n), packing, state) for n in (1, 2) for state in [state_of(network)]]
    state = state_of(network)
    for _ in range(3):
        network(token_ids(1, seed=1), packing, state)
        state.clear(0)
        assert torch.equal(network(token_ids(1, seed=2), packing, state), first[1])
        state.clear(0)


@torch.inference_mode()
def test_a_text_that_grows_keeps_its_tape() -> None:
    network, passes = packed_tiny("int8", "int8"), list[object]()
    state, run = state_of(network), network._tapes.run
    network._tapes.run = (  # type: ignore[method-assign]
        lambda key, owner, make: run(key, owner, lambda: (passes.append(key), make())[1])
    )
    for length in range(1, 60 * PAGE):
        pages = [list(range(-(-length // PAGE)))]
        network(token_ids(1, seed=length), Packing.cached([1], [length - 1], pages, [0], PAGE), state)
    assert len(passes) <= 2  # the first may move the workspace


@torch.inference_mode()
def test_what_the_head_reads_is_played_from_a_tape_though_it_is_long() -> None:
    network, read = packed_tiny("int8", "int8"), list[bool]()
    state, run = state_of(network), network._tapes.run
    network._tapes.run = (  # type: ignore[method-assign]
        lambda key, owner, make: run(key, owner, lambda: (read.append(key[0] == "mtp read"), make())[1])
    )
    assert state.mtp is not None
    for count, start in ((READ, 1), (READ, 1 + READ), (READ, 1 + 2 * READ)):
        packing = Packing.cached([count], [start], [list(range(PAGES))], [0], PAGE, first=1)
        hidden = torch.randn(count, network.config.hidden_size)
        network.mtp_read(hidden, token_ids(count, seed=start), packing, state.mtp)
    assert read == [True] or read == [True, True]  # the first may move the workspace


@torch.inference_mode()
def test_routing_that_is_asked_for_is_told() -> None:
    network = packed_tiny("int8", "int8")
    state, packing = state_of(network), Packing.cached([1], [0], [[0]], [0], PAGE)
    for _ in range(3):
        network(token_ids(1), packing, state)
    routing: Any = []
    network(token_ids(1), packing, state, routing)
    assert len(routing) == network.config.num_hidden_layers


@torch.inference_mode()
def test_old_tapes_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tape.Tapes, "MOST", 2)
    network = packed_tiny("int8", "int8")
    state = state_of(network)
    for length in (1, 2, 3, 4) * 2:
        network(token_ids(length), Packing.cached([length], [0], [[0]], [0], PAGE), state)
        assert len(network._tapes._tapes) <= 2
    lengths = [1, 2, 1, 3, 1]  # that of one token is played again and again: the other is let go
    passes = Counter[int]()
    for length in lengths:
        network._tapes.run(length, state, lambda length=length: passes.update([length]))
    assert passes == {1: 1, 2: 1, 3: 1}
