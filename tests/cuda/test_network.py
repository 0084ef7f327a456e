"""The network on CUDA: the CPU's logits, transformers' logits, and weights that go there and come back."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qnext.model.layers import Routing
from qnext.model.packing import Packing
from qnext.model.qwen3_next import Qwen3Next

from ..model.test_hf_equality import SHAPES, ours, theirs
from ..model.tiny import tiny_model, token_ids

LENGTHS = (1, 2, 5, 63, 64, 65, 130)


def agree(found: Tensor, wanted: Tensor) -> None:
    worst = (found.cpu() - wanted.cpu()).abs().max() / wanted.abs().max()
    assert worst <= 1e-4, float(worst)


@torch.inference_mode()
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape != "YaRN"])
def test_logits_and_experts_are_those_of_the_cpu(shape: str, device: str) -> None:
    model = tiny_model(**SHAPES[shape])
    there = deepcopy(model).to(device)
    ids, routing, routing_there = token_ids(sum(LENGTHS)), Routing(), Routing()
    hidden = model(ids, Packing.of(LENGTHS), routing=routing)
    found = there(ids.to(device), Packing.of(LENGTHS, device=device), routing=routing_there)
    assert found.device.type == device
    agree(there.logits(found), model.logits(hidden))
    for (_, mine), (_, other) in zip(routing_there, routing, strict=True):
        assert torch.equal(mine.cpu().sort(-1)[0], other.sort(-1)[0])
    ahead = there.mtp_hidden(found[:65], ids[1:66].to(device))
    agree(there.logits(ahead), model.logits(model.mtp_hidden(hidden[:65], ids[1:66])))


@torch.inference_mode()
@pytest.mark.parametrize("shape", ["plain", "YaRN", "four value heads a key head"])
@pytest.mark.parametrize("theirs_on", ["cpu", "device"])
def test_logits_are_those_of_transformers(shape: str, theirs_on: str, device: str, tmp_path: Path) -> None:
    reference = theirs(SHAPES[shape])
    model = ours(reference, tmp_path, torch.float32).to(device)
    reference.set_experts_implementation("eager")
    where = "cpu" if theirs_on == "cpu" else device
    reference.to(where)
    for length in LENGTHS:
        ids = token_ids(length, seed=length)
        agree(model.logits(model(ids.to(device))), reference(ids[None].to(where)).logits[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_go_there_and_back(dtype: torch.dtype, device: str, tmp_path: Path) -> None:
    model = tiny_model().to(dtype)
    model.save_pretrained(tmp_path / "one")
    there = Qwen3Next.from_pretrained(tmp_path / "one", device=device)
    assert {weight.device.type for weight in there.parameters()} == {device}
    there.save_pretrained(tmp_path / "two")
    names = ("config.json", "model.safetensors")
    assert all((tmp_path / "one" / n).read_bytes() == (tmp_path / "two" / n).read_bytes() for n in names)
    wider = Qwen3Next.from_pretrained(tmp_path / "two", device=device, dtype=torch.float32)
    for name, weight in wider.named_parameters():
        assert torch.equal(weight.cpu(), model.get_parameter(name).float()), name
