"""Rows of the embedding equal torch's, bit by bit."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from qnext.kernels.cpu.embedding import embed
from qnext.kernels.cpu.workspace import Workspace


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tokens", [1, 2, 37])
def test_it_is_a_lookup(dtype: torch.dtype, tokens: int) -> None:
    table = torch.randn(50, 48, generator=torch.Generator().manual_seed(1)).to(dtype)
    ids = torch.randint(50, (tokens,), generator=torch.Generator().manual_seed(2))
    found = embed(ids, table, torch.empty(tokens, 48), Workspace())
    assert found.equal(F.embedding(ids, table).float())


@pytest.mark.parametrize("token", [-1, 50])
def test_an_id_that_the_table_does_not_have_is_an_error(token: int) -> None:
    with pytest.raises(IndexError, match="0 to 49"):
        embed(torch.tensor([3, token]), torch.zeros(50, 16), torch.empty(2, 16), Workspace())
