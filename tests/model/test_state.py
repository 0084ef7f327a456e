"""The caches that the model declares: their bytes, shapes and clearing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qnext.model.config import ModelConfig
from qnext.model.packing import Packing
from qnext.model.qwen3_next import Qwen3Next
from qnext.model.state import State, StateSize

from ..kernels.programs import DRAFTS, PAGE, Layout, Move, Program, committed, play, programs
from ..kernels.twins import distance
from .published import PUBLISHED
from .tiny import TINY, tiny_model, token_ids

pytestmark = pytest.mark.usefixtures("poisoned_memory")

MODEL = tiny_model()


def test_bytes_of_the_published_model() -> None:
    size = StateSize.of(ModelConfig.from_dict(PUBLISHED))
    assert size.kv_token == 24 << 10
    assert size.delta == 72 << 20
    assert size.conv == 36 * 8192 * 3 * 2
    assert StateSize.of(ModelConfig.from_dict(PUBLISHED), itemsize=1, kept=2) == replace(
        size, kv_token=12 * 2 * 2 * (256 + 4)
    )
    single = StateSize.of(ModelConfig.from_dict(PUBLISHED), itemsize=4)
    assert (single.kv_token, single.delta, single.conv) == (48 << 10, 72 << 20, 2 * size.conv)


def test_allocated_bytes_are_the_declared_ones() -> None:
    config = ModelConfig.from_dict({**PUBLISHED, "vocab_size": 5, "head_dim": 16, "linear_num_key_heads": 4})
    state = State.allocate(config, pages=3, page_size=2, slots=5, dtype=torch.bfloat16)
    size = StateSize.of(config)

    def held(tensors: list[Tensor]) -> int:
        return sum(t.numel() * t.element_size() for t in tensors)

    assert held([t for pair in state.kv if pair for t in pair]) == size.kv_token * 3 * 2
    assert held([t for cache in state.delta if cache for t in cache]) == size.delta * 5
    assert held([t for t in state.conv if t is not None]) == size.conv * 5
    for kind, kv, delta, conv in zip(config.layer_types, state.kv, state.delta, state.conv, strict=True):
        assert (kv is not None) == (kind == "full_attention") == (delta is None) == (conv is None)


@pytest.mark.parametrize("mtp", [False, True])
@pytest.mark.parametrize("dtype", [torch.int8, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("drafts", [0, 3])
@pytest.mark.parametrize("kinds", ["llfl", "ll", "ff"])
def test_all_bytes_held_are_the_declared_ones(kinds: str, drafts: int, dtype: torch.dtype, mtp: bool) -> None:
    names = {"l": "linear_attention", "f": "full_attention"}
    config = ModelConfig(
        **{**TINY, "num_hidden_layers": len(kinds), "layer_types": tuple(names[kind] for kind in kinds)}
    )
    kept = torch.bfloat16 if dtype == torch.int8 else dtype
    state = State.allocate(
        config, pages=7, page_size=3, slots=5, dtype=dtype, kept=kept, drafts=drafts, mtp=mtp
    )
    size = StateSize.of(config, dtype.itemsize, drafts, mtp=mtp, kept=kept.itemsize)
    tensors = [state.pages, *state.slotted, *(t for pair in (*state.kv, state.mtp) if pair for t in pair)]
    tensors += [t for cache in state.delta if cache for t in cache]
    tensors += [t for t in (*state.conv, state.hidden) if t is not None]
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if t.numel()}
    assert sum(held.values()) == size.kv_token * 21 + size.slot * 5
    assert sum(t.numel() * t.element_size() for t in state.slotted) == size.slot * 5
    assert state.pages.numel() * dtype.itemsize == size.kv_token * 21
    assert (state.mtp is not None) == (state.hidden is not None) == mtp
    assert size.slot == size.delta + size.conv + size.window + size.hidden
    widths = [tensor.element_size() for tensor in state.certain]
    assert widths == sorted(widths, reverse=True)


def test_layers_do_not_share_cells() -> None:
    config = ModelConfig(**{**TINY, "num_hidden_layers": 2, "layer_types": ("full_attention",) * 2})
    state = State.allocate(config, pages=3, page_size=2, slots=1, dtype=torch.float32, mtp=True)
    sides = [t for pair in (*state.kv, state.mtp) if pair for t in pair]
    assert len(sides) == 6
    for value, side in enumerate(sides, 1):
        assert side.shape == (3, 2, config.num_key_value_heads, config.head_dim)
        assert side.count_nonzero() == 0
        side.fill_(value)
    assert sorted(state.pages[1].unique().tolist()) == [1, 2, 3, 4, 5, 6]


def test_clear_touches_one_slot() -> None:
    config = ModelConfig(num_hidden_layers=2, layer_types=("linear_attention", "full_attention"))
    state = State.allocate(config, pages=1, page_size=1, slots=3, dtype=torch.float32, drafts=2, mtp=True)
    delta, conv = state.delta[0], state.conv[0]
    assert delta is not None and conv is not None and state.hidden is not None
    for tensor in (*delta, conv, state.hidden, state.pages):
        tensor.fill_(float("nan"))
    state.clear(1)
    assert state.pages.isnan().all()
    for tensor in (*delta, conv, state.hidden):
        assert tensor[1].count_nonzero() == 0
        assert tensor[[0, 2]].isnan().all()


def forget(state: State, slot: int, kept: int) -> None:
    """Poison what a slot keeps of the drafts after the first `kept`."""
    for delta, conv in zip(state.delta, state.conv, strict=True):
        if delta is not None and conv is not None:
            for tensor in delta[1:]:
                tensor[slot, kept:] = float("nan")
            conv[slot, conv.shape[1] - DRAFTS + kept :] = float("nan")


@torch.inference_mode()
def check_program(model: Qwen3Next, program: Program, seed: int) -> None:
    """Play a program through the caches: hidden states of committed tokens equal one plain forward's, and
    sequences that start from saved slots equal one plain forward of their own text. NaN is in all that
    nobody may read: other slots and pages, cells and windows of rejected drafts."""
    totals = committed(program)
    texts = dict(zip(totals, token_ids(sum(totals.values()), seed).split([*totals.values()]), strict=True))
    saves = sum(len(move.saves) for row in program for move in row)
    layout = Layout.of(program, seed, spare_pages=2, spare_slots=1 + saves)
    state = State.allocate(
        model.config,
        pages=layout.page_count,
        page_size=PAGE,
        slots=layout.slot_count,
        dtype=torch.float32,
        drafts=DRAFTS,
    )
    for tensor in (state.pages, *state.slotted):
        tensor.fill_(float("nan"))
    for slot in layout.slots.values():
        state.clear(slot)
        forget(state, slot, 0)
    found: dict[int, list[Tensor]] = {n: [] for n in totals}
    saved: list[tuple[int, int, int]] = []
    wrong = iter(token_ids(9999, seed + 1).split(1))
    for turn in play(program, layout):
        ids: list[Tensor] = []
        for move, begin in zip(turn.moves, turn.begins, strict=True):
            ids.append(texts[move.sequence][begin : begin + move.certain + move.accepted])
            ids += (next(wrong) for _ in range(move.drafts - move.accepted))
        hidden = model(torch.cat(ids), turn.packing, state).split(turn.packing.lengths)
        for move, begin, slot, part in zip(turn.moves, turn.begins, turn.slots, hidden, strict=True):
            kept = move.certain + move.accepted
            found[move.sequence].append(part[:kept])
            forget(state, slot, move.accepted)
            for cell in range(begin + kept, begin + move.length):
                state.pages[layout.pages[move.sequence][cell // PAGE], :, :, cell % PAGE] = float("nan")
        saved += turn.saved
    for n, parts in found.items():
        assert distance(torch.cat(parts), model(texts[n])) < 1e-4
    for (n, count, slot), target in zip(saved, layout.spare_slots[1:], strict=True):
        for tensor in state.slotted:
            tensor[target] = tensor[slot]
        check_resumed(model, state, layout.pages[n], texts[n][:count], target, seed)


def check_resumed(
    model: Qwen3Next, state: State, pages: list[int], text: Tensor, slot: int, seed: int
) -> None:
    """Another continuation of `text` from a slot as it was at its end: a piece, drafts, and what follows."""
    whole = torch.cat((text, token_ids(20, seed + 2)))
    wanted = model(whole)
    cells = state.pages.clone()
    for i in range(len(text), len(pages) * PAGE):
        state.pages[pages[i // PAGE], :, :, i % PAGE] = float("nan")
    pages = [*pages, *(page for page in range(len(cells)) if page not in pages)]
    begin, replays = len(text), 0
    for certain, drafts, accepted in ((13, 0, 0), (1, 3, 2), (1, 0, 0), (3, 0, 0)):
        row = ([certain + drafts], [begin], [pages], [slot], PAGE)
        part = slice(begin, begin + certain + accepted)
        ids = torch.cat((whole[part], token_ids(drafts - accepted, seed + 3)))
        hidden = model(ids, Packing.cached(*row, drafts=[drafts], replays=[replays]), state)
        assert distance(hidden[: certain + accepted], wanted[part]) < 1e-4
        forget(state, slot, accepted)
        begin, replays = part.stop, accepted
    assert begin == len(whole)
    state.pages.copy_(cells)  # as they were, for others that share them


@settings(deadline=None, max_examples=60)
@given(programs(), st.integers(0, 99))
def test_any_program_of_drafts_and_saves_equals_one_forward(program: Program, seed: int) -> None:
    check_program(MODEL, program, seed)


@pytest.mark.parametrize("width", [1, 2, 6])
def test_windows_with_convolutions_of_any_width(width: int) -> None:
    rows = [[Move(0, 9, saves=(4, 8)), Move(1, 1, 4, 2)], [Move(0, 1, 3, 3)], [Move(1, 70), Move(0, 1, 2, 0)]]
    rows += [[Move(1, 1, 4, 4), Move(0, 1)], [Move(1, 1, 1, 1)], [Move(1, 6), Move(0, 6, saves=(5, 2))]]
    check_program(tiny_model(linear_conv_kernel_dim=width), rows, width)


def test_drafts_leave_certain_states_as_one_token_does() -> None:
    """Whatever is drafted after it, a slot's state and columns after a token are the same."""
    text = token_ids(30)
    found = []
    for drafted in (token_ids(4, 1), token_ids(4, 2), token_ids(2, 3)):
        state = State.allocate(
            MODEL.config, pages=5, page_size=PAGE, slots=1, dtype=torch.float32, drafts=DRAFTS
        )
        for ids, begin, drafts in ((text[:29], 0, 0), (torch.cat((text[29:], drafted)), 29, len(drafted))):
            MODEL(ids, Packing.cached([len(ids)], [begin], [[*range(5)]], [0], PAGE, drafts=[drafts]), state)
        past = MODEL.config.linear_conv_kernel_dim - 1
        found.append([delta.state for delta in state.delta if delta is not None])
        found[-1] += [conv[:, :past] for conv in state.conv if conv is not None]
    for others in found[1:]:
        assert max(distance(a, b) for a, b in zip(others, found[0], strict=True)) < 1e-6
