"""Which backend computes an op: the first of the device's list that has it, decided once per device.

Called by `model` at every forward. Invariant: a backend never changes while the process lives.
"""

from __future__ import annotations

import os
from functools import cache
from types import SimpleNamespace
from typing import cast

from .ops import Ops

OPS = tuple(name for name in vars(Ops) if not name.startswith("_"))


def packs(device: str) -> bool:
    """Whether networks run on packed weights on a device: on a CPU, unless QNEXT_KERNELS is "reference"."""
    return device == "cpu" and not _plain()


def must_compile(device: str) -> bool:
    """Whether no kernel was compiled yet for this machine and these sources, where networks need them."""
    if not packs(device):
        return False
    from .cpu.jit import folder

    return not any(folder().rglob("*.nbc"))  # as Numba names compiled code


def _plain() -> bool:
    """Whether QNEXT_KERNELS asks for the reference alone."""
    asked = os.environ.get("QNEXT_KERNELS") or "cpu"
    if asked not in ("cpu", "reference"):
        raise ValueError(f"QNEXT_KERNELS is {asked!r}: use cpu or reference, or unset it")
    return asked == "reference"


def backend_names(device: str) -> tuple[str, ...]:
    """The backends of a device type, in the order in which they are asked."""
    return ("cpu", "reference") if packs(device) else ("reference",)


@cache
def backend(device: str) -> Ops:
    """The ops for a device type ("cpu", "cuda") of a network that is not packed: of `training` or `cuda`
    where they are for it, else of `reference`."""
    from . import reference

    found = {name: getattr(reference, name) for name in OPS}
    if packs(device):
        from . import training

        found.update((name, getattr(training, name)) for name in training.__all__)
    elif device == "cuda" and not _plain():
        from . import cuda

        found.update((name, getattr(cuda, name)) for name in cuda.__all__)
    return cast(Ops, SimpleNamespace(**found))
