"""Shards: what the `safetensors` library writes is read, what we write it reads, and damage is always
refused.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from qnext.model.shard import read_header, read_tensor, same_data, write_shard

TENSORS = {
    "a": torch.arange(12, dtype=torch.float32).view(3, 4),
    "b": torch.ones(5, dtype=torch.bfloat16),
    "ü": torch.tensor([[-1.0, 448.0]]).to(torch.float8_e4m3fn),
    "empty": torch.ones(0, 3),
}
GOOD = save(TENSORS)


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "x.safetensors", metadata={"format": "pt"})
    header = read_header(tmp_path / "x.safetensors")
    assert header.keys() == TENSORS.keys()
    for name, info in header.items():
        stored = read_tensor(info)
        assert stored.dtype == TENSORS[name].dtype
        assert torch.equal(stored.float(), TENSORS[name].float())


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in TENSORS.items()}
    blocks = [TENSORS["a"][:1], TENSORS["a"][1:], TENSORS["b"], TENSORS["ü"], TENSORS["empty"]]
    write_shard(path, tensors, blocks)
    for name, tensor in load_file(path).items():
        assert tensor.dtype == TENSORS[name].dtype
        assert torch.equal(tensor.float(), TENSORS[name].float())
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_header_and_data_must_agree(tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        write_shard(tmp_path / "x", {"a": (torch.float32, (3, 4))}, [torch.zeros(2, 4)])


def test_same_data(tmp_path: Path) -> None:
    tensors = {
        "one": torch.arange(9.0),
        "same": torch.arange(9.0),
        "other": torch.zeros(9),
        "row": torch.zeros(1, 9),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    header = read_header(tmp_path / "x.safetensors")
    assert same_data(header["one"], header["same"])
    assert not same_data(header["one"], header["other"])
    assert not same_data(header["other"], header["row"])


@given(st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_refused_or_harmless(tmp_path: Path, data: st.DataObject) -> None:
    """Any bytes changed, cut off or added: a ValueError naming the file, or tensors that lie within it."""
    raw = bytearray(GOOD)
    for _ in range(data.draw(st.integers(0, 3))):
        start = data.draw(st.integers(0, len(raw)))
        raw[start : start + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw)
    try:
        header = read_header(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert sum(info.nbytes for info in header.values()) == len(raw) - 8 - int.from_bytes(
            raw[:8], "little"
        )
        for info in header.values():
            assert read_tensor(info).shape == info.shape
