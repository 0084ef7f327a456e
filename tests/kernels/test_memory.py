"""Memory in huge pages: zeroed, aligned, of any shape and dtype; alive as long as a view of it."""

from __future__ import annotations

import gc
import sys

import pytest
import torch

from qnext.kernels import memory


@pytest.mark.parametrize("shape", [(3, 5), (0,), (2, 3 << 20), (1 << 22,)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bfloat16, torch.float32])
def test_zeroed(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    taken = memory.take(shape, dtype)
    assert taken.shape == shape and taken.dtype == dtype and taken.is_contiguous()
    assert not taken.any()
    if taken.numel() * taken.element_size() >= memory.LARGE:
        assert taken.data_ptr() % 64 == 0


def test_a_view_keeps_it() -> None:
    view = memory.take((memory.LARGE,), torch.uint8)[100:200]
    view.fill_(7)
    gc.collect()
    assert view.tolist() == [7] * 100


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_what_is_available_is_told() -> None:
    assert 0 < memory.available() < sys.maxsize
