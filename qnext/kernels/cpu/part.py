"""Parts of kernels: functions that are only ever compiled into others, and so not for themselves.

Called by `jit`. Numba would optimise each of them, make machine code of it and load that, before it is taken
into what calls it and all of that is done again: a kernel is a tree of parts, and most of the time that it
takes to compile goes there. Twin: `numba.njit`. Invariant: a part is the same function either way.
"""

from __future__ import annotations

from typing import Any

from numba import _dynfunc
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler
from numba.core.compiler_machinery import register_pass
from numba.core.typed_passes import InlineOverloads, NativeLowering, NopythonRewrites
from numba.core.untyped_passes import (
    FindLiterallyCalls,
    InlineClosureLikes,
    LiteralUnroll,
    MakeFunctionToJitFunction,
    RewriteDynamicRaises,
    WithLifting,
)

# Passes over what parts never have: closures, contexts, errors with values, sums of whole arrays. Each goes
# through all of a part, and most have it analysed anew.
IDLE = {
    FindLiterallyCalls,
    InlineClosureLikes,
    InlineOverloads,
    LiteralUnroll,
    MakeFunctionToJitFunction,
    NopythonRewrites,
    RewriteDynamicRaises,
    WithLifting,
}


class _Library(JITCodeLibrary):
    """The code of a part, to be linked into another library and optimised there."""

    def _optimize_final_module(self) -> None:
        pass

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class _Lowering(NativeLowering):
    """To LLVM's code, but not to the machine's."""

    _name = "part_lowering"

    def run_pass(self, state: Any) -> bool:
        state["library"] = library = _Library(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)
        lowered = state["cr"]
        # the name under which callers find it; there is nothing that Python could call
        entry = _dynfunc.make_function(
            lowered.fndesc.lookup_module(), lowered.fndesc.qualname, "", 0, lowered.env, (library,)
        )
        state.targetctx.insert_user_function(entry, lowered.fndesc, [library])
        state["cr"] = lowered._replace(cfunc=entry)
        return True


class Part(Compiler):
    """Numba's pipeline with `_Lowering` in it."""

    def define_pipelines(self) -> Any:
        pipelines = super().define_pipelines()
        for pipeline in pipelines:
            pipeline.passes = [
                (_Lowering, text) if passed is NativeLowering else (passed, text)
                for passed, text in pipeline.passes
                if passed not in IDLE
            ]
        return pipelines
