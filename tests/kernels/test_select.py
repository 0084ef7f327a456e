"""A backend has every op of the contract, with the arguments that the contract names."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import ModuleType

import pytest

from qnext.kernels import cuda, reference, training
from qnext.kernels.cpu import jit
from qnext.kernels.ops import Ops
from qnext.kernels.select import OPS, backend, must_compile


@pytest.mark.parametrize("asked", ["cpu", "reference"])
@pytest.mark.parametrize("device,learning", [("cpu", training), ("cuda", cuda)])
def test_a_backend_has_every_op(
    device: str, learning: ModuleType, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(OPS) == set(reference.__all__) > set(learning.__all__)
    monkeypatch.setenv("QNEXT_KERNELS", asked)
    ops = backend.__wrapped__(device)
    own = learning.__all__ if asked == "cpu" else ()
    for name in OPS:
        assert getattr(ops, name) is getattr(learning if name in own else reference, name)


def test_a_backend_is_decided_once() -> None:
    assert backend("cpu") is backend("cpu")


def test_kernels_are_to_be_compiled_until_some_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jit, "folder", lambda: tmp_path / "kernels")
    assert must_compile("cpu") and not must_compile("cuda")
    (tmp_path / "kernels").mkdir()
    assert must_compile("cpu")
    (tmp_path / "kernels" / "some.nbc").touch()
    assert not must_compile("cpu")
    monkeypatch.setattr(jit, "folder", lambda: tmp_path / "others")
    monkeypatch.setenv("QNEXT_KERNELS", "reference")
    assert not must_compile("cpu")


@pytest.mark.parametrize("name", OPS)
def test_arguments_are_those_of_the_contract(name: str) -> None:
    contract = list(inspect.signature(getattr(Ops, name)).parameters)
    for package in (reference, training, cuda):
        if name in package.__all__:
            assert list(inspect.signature(getattr(package, name)).parameters) == contract[1:]
