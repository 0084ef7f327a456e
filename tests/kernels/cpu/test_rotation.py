"""Cosines and sines of positions equal those that the network's twin makes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from qnext.kernels.cpu.rotation import turn
from qnext.kernels.cpu.workspace import Workspace
from qnext.model.config import ModelConfig
from qnext.model.rope_scaling import Yarn
from qnext.model.rotary import frequencies, rotary_table

from ...model.tiny import tiny_model

PLAIN = tiny_model().config
YARN = replace(PLAIN, rope_scaling=Yarn(factor=4.0, original_max_position_embeddings=4096))
POSITIONS = torch.tensor([0, 1, 2, 77, 4095, 4096, 262143, 1048575])


def turned(config: ModelConfig, stretched: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    kinds = torch.stack([frequencies(config, stretched=each) for each in (False, True)])
    which = None if stretched is None else stretched.long()
    shape = len(POSITIONS), kinds.shape[1]
    out = torch.empty(shape), torch.empty(shape)
    scale = config.rope_scaling.scale if config.rope_scaling else 1.0
    return turn(POSITIONS, which, kinds[1:] if which is None else kinds, scale, out, Workspace())


@pytest.mark.parametrize("config", [PLAIN, YARN])
@pytest.mark.parametrize("stretched", [None, torch.arange(8) % 3 == 0])
def test_it_equals_the_twin(config: ModelConfig, stretched: torch.Tensor | None) -> None:
    for found, wanted in zip(
        turned(config, stretched), rotary_table(config, POSITIONS, stretched), strict=True
    ):
        assert (found - wanted).abs().max() < 2e-7


def test_a_position_does_not_depend_on_the_others() -> None:
    cos, sin = turned(PLAIN, None)
    kinds = frequencies(PLAIN)[None]
    for t, position in enumerate(POSITIONS):
        out = torch.empty(1, kinds.shape[1]), torch.empty(1, kinds.shape[1])
        turn(position[None], None, kinds, 1.0, out, Workspace())
        assert out[0][0].equal(cos[t]) and out[1][0].equal(sin[t])
