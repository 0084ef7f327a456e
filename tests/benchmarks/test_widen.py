"""A widened model says what the small one says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.widen import widen
from qnext.model.qwen3_next import Qwen3Next
from qnext.models import locate

from ..kernels.twins import distance

WIDER = {
    "hidden_size": 320,
    "head_dim": 128,
    "linear_num_key_heads": 3,
    "linear_num_value_heads": 6,
    "linear_key_head_dim": 96,
    "linear_value_head_dim": 80,
    "moe_intermediate_size": 160,
    "shared_expert_intermediate_size": 160,
    "intermediate_size": 544,
}


@torch.inference_mode()
@pytest.mark.parametrize(
    ("model", "layers", "heads"), [("tiny-base", 8, (10, 2)), ("tiny-thinking", 16, (12, 6))]
)
def test_it_says_the_same(model: str, layers: int, heads: tuple[int, int], tmp_path: Path) -> None:
    source, names = locate(model), ("num_attention_heads", "num_key_value_heads")
    widen(source, tmp_path, layers, WIDER | dict(zip(names, heads, strict=True)))
    small, wide = (Qwen3Next.from_pretrained(path, dtype=torch.float32) for path in (source, tmp_path))
    ids = torch.randint(0, 4000, (80,), generator=torch.Generator().manual_seed(1))
    hidden, wider = small(ids), wide(ids)
    assert distance(wide.logits(wider), small.logits(hidden)) < 1e-3
    guesses = [m.logits(m.mtp_hidden(h[:-1], ids[1:])) for m, h in ((small, hidden), (wide, wider))]
    assert distance(guesses[1], guesses[0]) < 1e-3


@pytest.mark.parametrize(
    ("layers", "changes", "words"),
    [(12, {}, "multiple of the model's 8"), (8, {"linear_num_value_heads": 16}, "as many value heads")],
)
def test_what_would_differ_is_refused(
    tmp_path: Path, layers: int, changes: dict[str, int], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        widen(locate("tiny-base"), tmp_path, layers, changes)
