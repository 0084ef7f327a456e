"""The instructions that a matrix unit is spoken to in."""

from __future__ import annotations

from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

from qnext.kernels.cpu import unit


def codegen(made: Any, build: ir.IRBuilder, *values: Any) -> None:
    """Emit what an op of `tiles` makes of literal numbers and of addresses."""
    closure = dict(zip(made._defn.__code__.co_freevars, made._defn.__closure__ or (), strict=True))
    scope = made._defn.__globals__["typed"] if not closure else closure["typed"].cell_contents
    inner = dict(zip(scope.__code__.co_freevars, (c.cell_contents for c in scope.__closure__), strict=True))
    inner["function"](build, *values)


def test_the_matrix_unit_is_spoken_to_in_its_own_instructions() -> None:
    """For a machine that has one, whatever this one has."""
    word = ir.IntType(64)
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [word] * 4), "product")
    build = ir.IRBuilder(function.append_basic_block())
    a, step, b, out = function.args
    codegen(unit.configure, build)
    codegen(unit.tile_zero, build, 0)
    codegen(unit.tile_load, build, 1, a, step)
    codegen(unit.tile_load, build, 2, b, ir.Constant(word, 64))
    codegen(unit.tile_dot, build, 0, 1, 2)
    codegen(unit.tile_store, build, 0, out, ir.Constant(word, 64))
    codegen(unit.zero_sums, build, 1)
    codegen(unit.load_sums, build, 2, out, step)
    codegen(unit.dot_sums, build, 2, a, step, b, step)
    codegen(unit.store_sums, build, 1, out, step)
    codegen(unit.release, build)
    build.ret_void()
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    target = llvm.Target.from_triple("x86_64-unknown-linux-gnu")
    machine = target.create_target_machine(cpu="sapphirerapids", opt=2)
    text = machine.emit_assembly(llvm.parse_assembly(str(module)))
    names = [
        line.split()[0] for line in text.splitlines() if line.startswith("\t") and "t" in line.split()[0]
    ]
    found = [name for name in names if name.startswith(("ldtilecfg", "tile", "tdp"))]
    one = "tilezero tileloadd tileloadd tdpbssd tilestored"
    more = "tilezero tileloadd tileloadd tileloadd tileloadd tdpbf16ps tileloadd tdpbf16ps tilestored"
    wanted = f"ldtilecfg {one} {more} tilerelease".split()
    assert sorted(found) == sorted(wanted) and found[0] == "ldtilecfg" and found[-1] == "tilerelease"
