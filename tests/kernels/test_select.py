"""A backend has every op of the contract, with the arguments that the contract names."""

from __future__ import annotations

import inspect

import pytest

from qnext.kernels import reference
from qnext.kernels.ops import Ops
from qnext.kernels.select import OPS, backend


def test_a_backend_has_every_op() -> None:
    assert set(OPS) == set(reference.__all__)
    ops = backend("cpu")
    for name in OPS:
        assert getattr(ops, name) is getattr(reference, name)


def test_a_backend_is_decided_once() -> None:
    assert backend("cpu") is backend("cpu")


@pytest.mark.parametrize("name", OPS)
def test_arguments_are_those_of_the_contract(name: str) -> None:
    contract = list(inspect.signature(getattr(Ops, name)).parameters)
    assert list(inspect.signature(getattr(reference, name)).parameters) == contract[1:]
