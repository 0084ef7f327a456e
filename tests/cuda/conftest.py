"""What runs on an accelerator, held against itself on the CPU and against a plain loop on the accelerator.

Without one the folder is skipped; `QNEXT_TEST_DEVICE=cpu` runs it on the CPU, which tests the tests.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from qnext.engine import sampler
from qnext.kernels import select


@pytest.fixture(scope="package")
def device() -> str:
    asked = os.environ.get("QNEXT_TEST_DEVICE", "cuda")
    if asked != "cpu" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here (QNEXT_TEST_DEVICE=cpu runs these tests on the CPU)")
    return asked


@pytest.fixture(autouse=True)
def exact_products(device: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Products of float32 in float32; and on the CPU the reference, which nothing has to be compiled for."""
    assert torch.get_float32_matmul_precision() == "highest"
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    for module in (select, sampler):
        monkeypatch.setattr(module, "packs", lambda device: False)
    select.backend.cache_clear()
    yield
    select.backend.cache_clear()
