"""What training sets for the whole process is set back, for the tests that follow in it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def denormal_numbers() -> Iterator[None]:
    yield
    torch.set_flush_denormal(False)
