"""Products are made in bfloat16 where that is quick, and a recipe that asks for it runs anywhere."""

from __future__ import annotations

import pytest
import torch

from qnext.train import network, optim
from qnext.train.precision import product_dtype


def test_a_gpu_multiplies_bfloat16() -> None:
    assert product_dtype("cuda") == torch.bfloat16


@pytest.mark.parametrize(("has", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cpu_without_bfloat16_multiplies_float32(
    has: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has)
    asked = product_dtype.__wrapped__
    assert asked("cpu") == dtype
    for module in (network, optim):
        monkeypatch.setattr(module, "product_dtype", asked)
    assert optim.orthogonalise(torch.randn(2, 8, 8)).dtype == dtype

    class Recipe:
        device, dtype = "cpu", "bfloat16"

    with network.autocast(Recipe()):  # type: ignore[arg-type]
        assert (torch.randn(4, 4) @ torch.randn(4, 4)).dtype == dtype
