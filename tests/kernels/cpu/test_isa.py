"""The level of instructions is the machine's best, or what the environment asks for if the machine has it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qnext.kernels.cpu import isa

AVX2 = isa.NEEDED["avx2"]
AVX512 = (*AVX2, *isa.NEEDED["avx512vnni"])
AMX = isa.NEEDED["amx"]


def asked(level: str) -> subprocess.CompletedProcess[str]:
    """What a new process makes of QNEXT_ISA."""
    code = "from qnext.kernels.cpu import isa; print(isa.level(), isa.has('generic'), isa.has_bf16())"
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "QNEXT_ISA": level}, capture_output=True, text=True
    )


@pytest.mark.parametrize(
    "features,level",
    [
        ((), "generic"),
        (AVX2[:-1], "generic"),
        (AVX2, "avx2"),
        (AVX512[:-1], "avx2"),
        (isa.NEEDED["avx512vnni"], "generic"),
        (AVX512, "avx512vnni"),
        ((*AVX512, "avx512bf16"), "avx512vnni"),
        (AMX, "generic"),
        ((*AVX512, *AMX), "amx"),
    ],
    ids=str,
)
def test_the_best_level_has_all_that_is_below_it(features: tuple[str, ...], level: str) -> None:
    assert isa.best_level(frozenset(features)) == level


def test_the_environment_may_ask_for_less() -> None:
    assert asked("generic").stdout.split() == ["generic", "True", "False"]


def test_nothing_asked_is_the_best() -> None:
    assert asked("").stdout.split()[0] in isa.LEVELS


def test_an_unknown_level_is_refused() -> None:
    assert "QNEXT_ISA is 'sse9': use one of generic, avx2, avx512vnni, amx" in asked("sse9").stderr


def test_more_than_the_machine_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QNEXT_ISA", "amx")
    monkeypatch.setattr(isa, "features", lambda: frozenset(AVX512))
    with pytest.raises(ValueError, match="QNEXT_ISA is amx, but this CPU has no more than avx512vnni: unset"):
        isa.level.__wrapped__()


def test_without_leave_to_use_tiles_the_level_is_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QNEXT_ISA", raising=False)
    monkeypatch.setattr(isa, "features", lambda: frozenset((*AVX512, *AMX)))
    for permitted, level in ((True, "amx"), (False, "avx512vnni")):
        monkeypatch.setattr(isa, "_tiles_permitted", lambda permitted=permitted: permitted)
        assert isa.level.__wrapped__() == level


def test_only_products_know_of_avx2() -> None:
    """So that all other kernels are the same on both levels below AVX-512, and one test of them is enough."""
    sources = Path(isa.__file__).parent.glob("*.py")
    assert {path.name for path in sources if "avx2" in path.read_text()} == {"isa.py", "dot.py", "pairs.py"}
