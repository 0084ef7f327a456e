"""The runner's memory: what is stored in pages comes back to a slot as it was, whatever a page's size is."""

from __future__ import annotations

import pytest
import torch

from qnext.engine.plan import Restore
from qnext.engine.runner import Runner, _widest

from .harness import MODEL


@pytest.mark.parametrize("page_size", [1, 2, 3, 16])
@pytest.mark.parametrize("word", [8, 4, 2, 1])
@torch.inference_mode()
def test_what_is_stored_is_restored(page_size: int, word: int) -> None:
    kinds = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}
    runner = Runner(MODEL, 4000, page_size, 3, 2)
    assert runner._words.dtype == torch.int64  # of sizes that networks have
    runner._words = runner.memory.view(kinds[word])
    for slotted in runner.state.slotted:
        slotted.copy_(torch.randn(slotted.shape, generator=torch.Generator().manual_seed(1)))
    wanted, others = runner.content_of(1), runner.content_of(0)
    count = -(-runner.state_bytes // runner.memory.shape[1])
    pages = list(range(count + 7, 7, -1))
    before = runner.memory.clone()
    runner.store(1, pages)
    kept = [page for page in range(len(before)) if page not in pages]
    assert torch.equal(runner.memory[kept], before[kept])
    runner.move(Restore(2, tuple(pages), None, 1))
    assert torch.equal(runner.content_of(2), wanted) and torch.equal(runner.content_of(0), others)


@pytest.mark.parametrize(
    "size, word", [(16, torch.int64), (12, torch.int32), (6, torch.int16), (5, torch.uint8)]
)
def test_words_are_as_large_as_pages_allow(size: int, word: torch.dtype) -> None:
    assert _widest(size) is word
