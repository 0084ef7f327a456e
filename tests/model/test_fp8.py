"""Block float8 against the definition in float64, one number at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from qnext.model.checkpoint import Checkpoint
from qnext.model.fp8 import SCALE, Scale
from qnext.model.qwen3_next import Qwen3Next
from qnext.model.weights import save_weights

from .checkpoints import edit_tensors, fp8_checkpoint, quantise, read_tensors, tiny_config

# Rows and columns that are no multiples of 128, and some that are.
CONFIG = tiny_config(hidden_size=200, head_dim=128, linear_key_head_dim=72, moe_intermediate_size=130)


def defined(weight: Tensor, scale: Tensor, block: int) -> Tensor:
    """weight[i, j] * scale[i // block, j // block] in float64."""
    spread = np.kron(scale.double().numpy(), np.ones((block, block)))[: weight.shape[0], : weight.shape[1]]
    return torch.from_numpy(weight.double().numpy() * spread)


@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [128, 48])
def test_a_checkpoint_is_dequantised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int, scale_dtype: torch.dtype
) -> None:
    monkeypatch.setattr("qnext.model.rows.BLOCK", 7000)  # blocks of rows that do not fit those of scales
    path = fp8_checkpoint(tmp_path / "source", CONFIG, block=block)
    edit_tensors(
        path / "model.safetensors",
        lambda tensors: tensors.update(
            {n: t.to(scale_dtype) for n, t in tensors.items() if n.endswith(SCALE)}
        ),
    )
    assert Checkpoint(path).dtype == torch.bfloat16
    stored = read_tensors(path)
    expected = {
        name: defined(tensor, stored[name + SCALE], block) if name + SCALE in stored else tensor
        for name, tensor in stored.items()
        if not name.endswith(SCALE)
    }
    assert sum(name + SCALE in stored for name in expected) > 30
    for dtype in (torch.float32, torch.bfloat16):
        save_weights(Qwen3Next.from_pretrained(path, dtype=dtype), tmp_path / "copy")
        found = read_tensors(tmp_path / "copy")
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor.float().to(dtype)), name


def test_quantised_weights_stay_close(tmp_path: Path) -> None:
    """The scales are multiplied, not divided by: e4m3 keeps 3 bits, so a weight is at most 1/16 off."""
    weight = torch.randn(150, 300, generator=torch.Generator().manual_seed(0))
    found = Scale(quantise(weight)[1], (128, 128)).apply(quantise(weight)[0], 0)
    assert ((found - weight).abs() <= weight.abs() / 16 + 1e-3 * weight.abs().max()).all()


def test_rows_may_start_anywhere() -> None:
    quantised, scale = quantise(torch.randn(50, 20, generator=torch.Generator().manual_seed(0)), 16)
    whole = Scale(scale, (16, 16)).apply(quantised, 0)
    for first in (0, 1, 15, 16, 33):
        assert torch.equal(
            Scale(scale, (16, 16)).apply(quantised[first : first + 18], first), whole[first : first + 18]
        )


def test_a_saved_copy_is_plain(tmp_path: Path) -> None:
    path = fp8_checkpoint(tmp_path / "source", CONFIG)
    Qwen3Next.from_pretrained(path).save_pretrained(tmp_path / "copy")
    assert Checkpoint(tmp_path / "copy").fp8_block is None
