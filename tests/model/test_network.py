"""Which network a checkpoint becomes: packed on a CPU where kernels can do its shape, else the float one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qnext.kernels.packed import dequantise
from qnext.model.conversion import convert
from qnext.model.network import load_network, network_of
from qnext.model.packed_network import PackedQwen3Next
from qnext.model.qwen3_next import Qwen3Next
from qnext.model.scheme import Scheme

from .packed_tiny import SHAPE
from .tiny import tiny_model, token_ids


def saved(path: Path, dtype: torch.dtype = torch.bfloat16, **changes: object) -> Path:
    tiny_model(**{**SHAPE, **changes}).to(dtype).save_pretrained(path)
    return path


def test_a_float_checkpoint_is_packed_in_its_own_numbers(tmp_path: Path) -> None:
    network = load_network(saved(tmp_path / "x"))
    assert isinstance(network, PackedQwen3Next)
    assert network.lm_head.packed.kind == "bfloat16" and network.cache_dtype == torch.bfloat16
    assert torch.equal(
        dequantise(network.lm_head.packed),
        Qwen3Next.from_pretrained(tmp_path / "x").lm_head.weight.float(),  # type: ignore[union-attr]
    )
    wide = load_network(tmp_path / "x", dtype=torch.float32)
    assert isinstance(wide, PackedQwen3Next)
    assert wide.lm_head.packed.kind == "float32" and wide.cache_dtype == torch.float32


def test_it_is_rounded_where_asked_and_serves_as_converted(tmp_path: Path) -> None:
    source = saved(tmp_path / "x")
    convert(source, tmp_path / "packed", Scheme("int4"))
    rounded, opened = load_network(source, quantize="int4"), load_network(tmp_path / "packed")
    assert isinstance(rounded, PackedQwen3Next) and isinstance(opened, PackedQwen3Next)
    ids = token_ids(9)
    assert torch.equal(rounded.logits(rounded(ids)), opened.logits(opened(ids)))


def test_shapes_and_numbers_that_kernels_cannot_do(tmp_path: Path) -> None:
    odd = saved(tmp_path / "odd", linear_key_head_dim=8)
    assert isinstance(load_network(odd), Qwen3Next)
    assert isinstance(load_network(saved(tmp_path / "half", torch.float16)), Qwen3Next)
    with pytest.raises(ValueError, match="leave --quantize out"):
        load_network(odd, quantize="int4")


def test_keys_and_values_may_be_kept_in_8_bits(tmp_path: Path) -> None:
    source = saved(tmp_path / "x")
    convert(source, tmp_path / "packed", Scheme("int4"))
    for path in (source, tmp_path / "packed"):
        assert load_network(path, kv_cache="int8").cache_dtype == torch.int8
    odd = saved(tmp_path / "odd", linear_key_head_dim=8)
    convert(odd, tmp_path / "odd packed", Scheme("int8"))
    for path in (odd, tmp_path / "odd packed", saved(tmp_path / "half", torch.float16)):
        with pytest.raises(ValueError, match="leave --kv-cache out"):
            load_network(path, kv_cache="int8")


def test_the_reference_can_be_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = saved(tmp_path / "x")
    convert(source, tmp_path / "packed", Scheme("int8"))
    monkeypatch.setenv("QNEXT_KERNELS", "reference")
    assert isinstance(load_network(source), Qwen3Next)
    assert isinstance(load_network(tmp_path / "packed"), Qwen3Next)
    monkeypatch.setenv("QNEXT_KERNELS", "fast")
    with pytest.raises(ValueError, match="QNEXT_KERNELS is 'fast'"):
        load_network(source)


def test_what_is_packed_is_not_rounded_again(tmp_path: Path) -> None:
    convert(saved(tmp_path / "x"), tmp_path / "packed", Scheme("int8"))
    with pytest.raises(ValueError, match="packed already"):
        load_network(tmp_path / "packed", quantize="int4")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packs", [True, False])
def test_a_model_in_memory_becomes_what_its_checkpoint_would(
    tmp_path: Path, dtype: torch.dtype, packs: bool
) -> None:
    model = tiny_model(**(SHAPE if packs else {})).train().requires_grad_(True)
    model.to(dtype).save_pretrained(tmp_path / "x")
    made, loaded = network_of(model, dtype=dtype), load_network(tmp_path / "x")
    assert type(made) is type(loaded) and isinstance(made, PackedQwen3Next) == packs
    with torch.no_grad():
        ids = token_ids(9)
        found = made.logits(made(ids)).clone()
        assert torch.equal(found, loaded.logits(loaded(ids)))
        for weight in model.parameters():  # it goes on learning, and what was made of it does not change
            weight.zero_()
        assert torch.equal(found, made.logits(made(ids)))
