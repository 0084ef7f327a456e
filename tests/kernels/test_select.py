"""A backend has every op of the contract, with the arguments that the contract names."""

from __future__ import annotations

import inspect

import pytest

from qnext.kernels import reference, training
from qnext.kernels.ops import Ops
from qnext.kernels.select import OPS, backend


@pytest.mark.parametrize("device,asked", [("cpu", "cpu"), ("cpu", "reference"), ("cuda", "cpu")])
def test_a_backend_has_every_op(device: str, asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(OPS) == set(reference.__all__) > set(training.__all__)
    monkeypatch.setenv("QNEXT_KERNELS", asked)
    ops = backend.__wrapped__(device)
    learning = training.__all__ if (device, asked) == ("cpu", "cpu") else ()
    for name in OPS:
        assert getattr(ops, name) is getattr(training if name in learning else reference, name)


def test_a_backend_is_decided_once() -> None:
    assert backend("cpu") is backend("cpu")


@pytest.mark.parametrize("name", OPS)
def test_arguments_are_those_of_the_contract(name: str) -> None:
    contract = list(inspect.signature(getattr(Ops, name)).parameters)
    for package in (reference, training):
        if name in package.__all__:
            assert list(inspect.signature(getattr(package, name)).parameters) == contract[1:]
