"""Pieces of memory that grow, tensors of them by shape, and tapes of what was run there."""

from __future__ import annotations

import numba
import numpy as np
import torch

from qnext.kernels.cpu.embedding import embed
from qnext.kernels.cpu.tape import Tapes
from qnext.kernels.cpu.workspace import KINDS, Workspace


def test_a_shape_is_the_same_tensor_until_its_piece_moves() -> None:
    """Trunk and head take turns at the same pieces, with other numbers of rows."""
    workspace = Workspace()
    small, large = (workspace.take("rows", (n, 16), torch.float32) for n in (2, 8))  # the second one moves it
    small = workspace.take("rows", (2, 16), torch.float32)
    assert small.data_ptr() == large.data_ptr() and small.data_ptr() % 64 == 0
    assert workspace.take("rows", (2, 16), torch.float32) is small
    assert workspace.take("rows", (8, 16), torch.float32) is large
    workspace.address("rows", 10_000)
    again = workspace.take("rows", (2, 16), torch.float32)
    assert again.data_ptr() == workspace.address("rows", 1) != small.data_ptr()


def test_what_is_laid_down_follows_its_piece() -> None:
    workspace, numbers = Workspace(), np.arange(4)
    workspace.lay("ids", numbers)
    workspace.lay("ids", np.arange(1000))
    laid = workspace.lay("ids", numbers + 5)
    assert laid.tolist() == [5, 6, 7, 8] and laid.data_ptr() == workspace.address("ids", 1)
    assert workspace.lay("ids", numbers) is laid and laid.tolist() == [0, 1, 2, 3]


def test_shapes_without_end_are_not_remembered_without_end() -> None:
    workspace = Workspace()
    for rows in range(3 * KINDS, 0, -1):
        assert workspace.take("rows", (rows, 16), torch.float32).shape == (rows, 16)
    assert len(workspace._tensors["rows"]) <= KINDS and workspace.moves == 1


def test_a_tape_is_played_by_as_many_threads_as_it_was_made_for() -> None:
    """A thread that was told to work alone must not leave the others' shares undone."""
    workspace, owner, before = Workspace(), torch.nn.Identity(), numba.get_num_threads()
    tapes, ids = Tapes(workspace), torch.arange(8)
    table, out = torch.randn(8, 16), torch.zeros(8, 16)
    try:
        for threads in (min(2, numba.config.NUMBA_NUM_THREADS), 1):
            numba.set_num_threads(threads)
            for _ in range(2):  # the second one from the tape, but for the first number of threads
                out.zero_()
                tapes.run("rows", owner, lambda: embed(ids, table, out, workspace))
                assert out.equal(table)
    finally:
        numba.set_num_threads(before)
